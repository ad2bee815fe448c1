//! The portable provider: RustCrypto's `aes-gcm` and `chacha20poly1305`, pure Rust.
//!
//! Slower than assembly, but it builds anywhere `rustc` does and shares no line with the fast one, which makes it the
//! oracle the fast one is checked against. Out of place it reads the source once where nothing has to follow the plaintext
//! (TLS 1.2), and otherwise copies first: its ciphers take one contiguous buffer.

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, Key, KeyInit, Nonce, Tag, consts};
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use aes_gcm::aes::{Aes128, Aes256};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use chacha20::cipher::{KeyIvInit, StreamCipherCore};
use chacha20::variants::Ietf;
use chacha20::{ChaChaCore, R20};
use chacha20poly1305::ChaCha20Poly1305;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::{Aead, AeadFailed, Provider, SAMPLE_LEN, SequenceMask, check_key};
use crate::error::Error;
use crate::suite::{CipherSuite, NONCE_LEN, TAG_LEN};

/// AEADs from RustCrypto.
#[derive(Clone, Copy, Debug, Default)]
pub struct RustCrypto;

impl Provider for RustCrypto {
    fn name(&self) -> &'static str {
        "RustCrypto"
    }

    fn aead(&self, cipher: CipherSuite, key: &[u8]) -> Result<Box<dyn Aead>, Error> {
        check_key(cipher, key)?;
        fn expand<C>(cipher: CipherSuite, key: &[u8]) -> Result<Box<dyn Aead>, Error>
        where
            C: KeyInit
                + AeadInOut<NonceSize = consts::U12, TagSize = consts::U16>
                + ZeroizeOnDrop
                + Send
                + Sync
                + 'static,
        {
            let unavailable = Error::Unavailable {
                provider: RustCrypto.name(),
                cipher,
            };
            let key = <&Key<C>>::try_from(key).map_err(|_| unavailable)?;
            Ok(Box::new(Expanded {
                cipher,
                aead: C::new(key),
            }))
        }
        match cipher {
            CipherSuite::Aes128Gcm => expand::<Aes128Gcm>(cipher, key),
            CipherSuite::Aes256Gcm => expand::<Aes256Gcm>(cipher, key),
            CipherSuite::ChaCha20Poly1305 => expand::<ChaCha20Poly1305>(cipher, key),
        }
    }

    fn sequence_mask(
        &self,
        cipher: CipherSuite,
        key: &[u8],
    ) -> Result<Box<dyn SequenceMask>, Error> {
        check_key(cipher, key)?;
        let unavailable = |_| Error::Unavailable {
            provider: RustCrypto.name(),
            cipher,
        };
        Ok(match cipher {
            CipherSuite::Aes128Gcm => Box::new(BlockMask(
                <Aes128 as KeyInit>::new_from_slice(key).map_err(unavailable)?,
            )),
            CipherSuite::Aes256Gcm => Box::new(BlockMask(
                <Aes256 as KeyInit>::new_from_slice(key).map_err(unavailable)?,
            )),
            CipherSuite::ChaCha20Poly1305 => {
                let mut own = Zeroizing::new([0; 32]);
                own.copy_from_slice(key);
                Box::new(StreamMask(own))
            }
        })
    }
}

/// A sequence-number key for AES.
struct BlockMask<C>(C);

impl<C> core::fmt::Debug for BlockMask<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("sequence-number key")
    }
}

impl<C> SequenceMask for BlockMask<C>
where
    C: BlockCipherEncrypt + aes_gcm::aes::cipher::BlockSizeUser<BlockSize = consts::U16>,
    C: ZeroizeOnDrop + Send + Sync,
{
    fn mask(&self, sample: &[u8; SAMPLE_LEN]) -> Result<[u8; 2], AeadFailed> {
        let mut block = (*sample).into();
        self.0.encrypt_block(&mut block);
        Ok([block[0], block[1]])
    }
}

/// A sequence-number key for ChaCha20; the cipher has no state between samples.
struct StreamMask(Zeroizing<[u8; 32]>);

impl core::fmt::Debug for StreamMask {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("sequence-number key")
    }
}

impl SequenceMask for StreamMask {
    fn mask(&self, sample: &[u8; SAMPLE_LEN]) -> Result<[u8; 2], AeadFailed> {
        let (counter, nonce) = sample.split_first_chunk::<4>().ok_or(AeadFailed)?;
        let nonce: &[u8; NONCE_LEN] = nonce.try_into().map_err(|_| AeadFailed)?;
        let mut core = ChaChaCore::<R20, Ietf>::new((&*self.0).into(), nonce.into());
        core.set_block_pos(u32::from_le_bytes(*counter));
        let mut block = Default::default();
        core.write_keystream_block(&mut block);
        Ok([block[0], block[1]])
    }
}

/// An expanded key; `ZeroizeOnDrop` is part of the bound it is made with.
struct Expanded<C> {
    cipher: CipherSuite,
    aead: C,
}

impl<C> core::fmt::Debug for Expanded<C> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} key", self.cipher)
    }
}

impl<C> Aead for Expanded<C>
where
    C: AeadInOut<NonceSize = consts::U12, TagSize = consts::U16> + Send + Sync,
{
    fn seal_in_place(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &mut [u8; TAG_LEN],
    ) -> Result<(), AeadFailed> {
        let sealed =
            self.aead
                .encrypt_inout_detached(&Nonce::<C>::from(*nonce), aad, in_out.into());
        *tag = sealed.map_err(|_| AeadFailed)?.into();
        Ok(())
    }

    fn seal_from(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        plaintext: &[u8],
        trailer: &[u8],
        out: &mut [u8],
    ) -> Result<(), AeadFailed> {
        let (ciphertext, tag) = out.split_last_chunk_mut::<TAG_LEN>().ok_or(AeadFailed)?;
        if trailer.is_empty() {
            let buffer = InOutBuf::new(plaintext, ciphertext).map_err(|_| AeadFailed)?;
            let sealed = self
                .aead
                .encrypt_inout_detached(&Nonce::<C>::from(*nonce), aad, buffer);
            *tag = sealed.map_err(|_| AeadFailed)?.into();
            return Ok(());
        }
        if ciphertext.len() != plaintext.len() + trailer.len() {
            return Err(AeadFailed);
        }
        let (front, back) = ciphertext.split_at_mut(plaintext.len());
        front.copy_from_slice(plaintext);
        back.copy_from_slice(trailer);
        self.seal_in_place(nonce, aad, ciphertext, tag)
    }

    fn open_in_place(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        in_out: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), AeadFailed> {
        self.aead
            .decrypt_inout_detached(
                &Nonce::<C>::from(*nonce),
                aad,
                in_out.into(),
                &Tag::<C>::from(*tag),
            )
            .map_err(|_| AeadFailed)
    }

    fn open_from(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), AeadFailed> {
        let buffer = InOutBuf::new(ciphertext, out).map_err(|_| AeadFailed)?;
        self.aead
            .decrypt_inout_detached(
                &Nonce::<C>::from(*nonce),
                aad,
                buffer,
                &Tag::<C>::from(*tag),
            )
            .map_err(|_| AeadFailed)
    }
}
