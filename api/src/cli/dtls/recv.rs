//! `uktls dtls-recv`: what a peer sends, to a file or to stdout.

use super::super::progress::Progress;
use super::super::{Context, Failure, Globals, Outcome};
use super::association::{self, Heard, Meeting, Voice, broken_off, done, pace, records};
use super::options::RecvArgs;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Instant;

/// Largest plaintext of a record.
const RECORD: usize = 1 << 14;

/// What was promised.
struct Expected {
    size: Option<u64>,
    sha256: Option<[u8; 32]>,
}

/// Receives.
pub(crate) fn run(args: RecvArgs, globals: &Globals) -> Outcome {
    let stdout = args.output.as_os_str() == "-";
    // Before anybody is waited for: whether there is a place for it.
    let (sink, name) = open(&args.output, stdout)?;
    let expected = Expected {
        size: args.size,
        sha256: args.sha256,
    };
    let globals_here = globals.clone();
    association::run(
        args.peer,
        globals,
        stdout,
        broken_off(),
        move |meeting, voice| receive(&meeting, sink, &name, &expected, voice, &globals_here),
    )
}

fn open(path: &Path, stdout: bool) -> Result<(Box<dyn Write + Send>, String), Failure> {
    if stdout {
        return Ok((Box::new(io::stdout()), "stdout".into()));
    }
    let name = path.display().to_string();
    let file = File::create(path).context(|| format!("cannot write to {name}"))?;
    Ok((Box::new(BufWriter::new(file)), name))
}

fn receive(
    meeting: &Meeting,
    mut sink: Box<dyn Write + Send>,
    name: &str,
    expected: &Expected,
    voice: Voice,
    globals: &Globals,
) -> Outcome {
    let mut association = meeting.associate()?;
    let peer = association.peer()?;
    let mut got = Got::default();
    let mut buffer = vec![0; RECORD];
    let progress = Progress::new(globals, expected.size);
    let closed = loop {
        match association.wait(meeting.limit())? {
            Heard::Record => {}
            Heard::Close => break true,
            Heard::Silence => break false,
        }
        let len = association.receive(&mut buffer)?;
        sink.write_all(&buffer[..len])
            .context(|| format!("cannot write to {name}"))?;
        got.add(&buffer[..len]);
        progress.at(got.bytes);
    };
    drop(progress);
    sink.flush().context(|| format!("cannot write to {name}"))?;
    let time = got
        .last
        .map_or_else(Default::default, |last| last - association.begun);
    let (lost, unread, cipher) = (
        association.lost()?,
        association.unread()?,
        association.cipher(),
    );
    association.close()?;
    let digest: [u8; 32] = got.hash.finalize().into();
    voice.say(
        &json!({
            "output": name,
            "peer": peer.to_string(),
            "cipher": cipher,
            "bytes": got.bytes,
            "records": got.records,
            "missing": lost,
            "unread": unread,
            "closed": closed,
            "sha256": hex(&digest),
            "seconds": time.as_secs_f64(),
        }),
        &format!(
            "{name} from {peer}: {} bytes in {} {}, {cipher}; {}",
            got.bytes,
            records(got.records),
            pace(got.bytes, time),
            losses(lost, unread),
        ),
    )?;
    expected.check(got.bytes, &digest, lost + unread)?;
    if !closed && expected.sha256.is_none() && expected.size.is_none() {
        return Err(Failure::new(format_args!(
            "{peer} fell silent after {} bytes and did not say close_notify",
            got.bytes
        )));
    }
    done()
}

/// What came.
#[derive(Default)]
struct Got {
    bytes: u64,
    records: u64,
    hash: Sha256,
    last: Option<Instant>,
}

impl Got {
    fn add(&mut self, plaintext: &[u8]) {
        self.bytes += plaintext.len() as u64;
        self.records += 1;
        self.hash.update(plaintext);
        self.last = Some(Instant::now());
    }
}

impl Expected {
    fn check(&self, bytes: u64, digest: &[u8; 32], lost: u64) -> Result<(), Failure> {
        let why = match lost {
            0 => String::new(),
            lost => format!(" ({} did not come)", records(lost)),
        };
        if let Some(size) = self.size
            && size != bytes
        {
            return Err(Failure::new(format_args!(
                "expected {size} bytes, received {bytes}{why}"
            )));
        }
        if let Some(wanted) = &self.sha256
            && wanted != digest
        {
            return Err(Failure::new(format_args!(
                "expected SHA-256 {}, received {}{why}",
                hex(wanted),
                hex(digest)
            )));
        }
        Ok(())
    }
}

/// What did not arrive, in words.
pub(super) fn losses(lost: u64, unread: u64) -> String {
    match (lost, unread) {
        (0, 0) => "none missing".into(),
        (lost, 0) => format!("{} missing", records(lost)),
        (0, unread) => format!(
            "{} lost because they were not read in time",
            records(unread)
        ),
        (lost, unread) => format!(
            "{} missing, and {} lost because they were not read in time",
            records(lost),
            records(unread)
        ),
    }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_promised_is_held_against_what_came() {
        let expected = Expected {
            size: Some(3),
            sha256: Some([7; 32]),
        };
        assert_eq!(expected.check(3, &[7; 32], 0), Ok(()));
        let said = |bytes, digest, lost| {
            let failure = expected.check(bytes, &[digest; 32], lost);
            failure.expect_err("not as promised").to_string()
        };
        assert_eq!(
            said(2, 7, 1),
            "expected 3 bytes, received 2 (1 record did not come)"
        );
        assert_eq!(
            said(3, 8, 0),
            format!(
                "expected SHA-256 {}, received {}",
                "07".repeat(32),
                "08".repeat(32)
            )
        );
    }
}
