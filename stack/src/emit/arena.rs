//! Where a socket's sealed stream lies from the moment it is sealed until the peer has acknowledged it.
//!
//! Records are appended one after the other to chunks that come from a [`Pool`]; TCP sends, and sends again, any range
//! of stream offsets as slices of them. A record never straddles two chunks. Chunks come in two sizes, so that a
//! 30-byte send pins 4 KiB and bulk gets 256 KiB; an idle connection, everything acknowledged, holds none.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

/// Size of the chunks for bulk, in bytes: several super-segments, and a fraction of a core's second-level cache.
pub const LARGE_CHUNK: usize = 256 * 1024;
/// Size of the chunks for little, in bytes.
pub const SMALL_CHUNK: usize = 4 * 1024;

/// Chunks of memory that nobody uses right now; one pool serves all sockets of a shard.
#[derive(Debug)]
pub struct Pool {
    large: Vec<Box<[u8]>>,
    small: Vec<Box<[u8]>>,
    /// Bytes handed out.
    in_use: usize,
}

/// Large chunks kept for reuse; more than that go back to the allocator.
const KEEP_LARGE: usize = 16;
/// Small chunks kept for reuse.
const KEEP_SMALL: usize = 256;

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Pool {
        Pool {
            large: Vec::new(),
            small: Vec::new(),
            in_use: 0,
        }
    }

    /// Bytes that sockets hold right now.
    pub fn in_use(&self) -> usize {
        self.in_use
    }

    fn take(&mut self, least: usize) -> Box<[u8]> {
        let (free, size) = if least <= SMALL_CHUNK {
            (&mut self.small, SMALL_CHUNK)
        } else {
            (&mut self.large, LARGE_CHUNK)
        };
        // The last one back is the first one out: it is the one still in the cache.
        let chunk = free
            .pop()
            .unwrap_or_else(|| vec![0; size.max(least)].into_boxed_slice());
        self.in_use += chunk.len();
        chunk
    }

    fn give(&mut self, chunk: Box<[u8]>) {
        self.in_use -= chunk.len();
        let (free, keep) = match chunk.len() {
            SMALL_CHUNK => (&mut self.small, KEEP_SMALL),
            LARGE_CHUNK => (&mut self.large, KEEP_LARGE),
            _ => return,
        };
        if free.len() < keep {
            free.push(chunk);
        }
    }
}

#[derive(Debug)]
struct Chunk {
    bytes: Box<[u8]>,
    /// Stream offset of the first byte.
    start: u64,
    /// Bytes that belong to the stream.
    len: usize,
}

/// One socket's sealed, unacknowledged stream.
#[derive(Debug, Default)]
pub struct Arena {
    chunks: VecDeque<Chunk>,
    /// Stream offset behind the last committed byte.
    end: u64,
}

impl Arena {
    /// An arena without chunks, at stream offset 0.
    pub fn new() -> Arena {
        Arena::default()
    }

    /// Stream offset behind the last committed byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes.len()).sum()
    }

    /// All contiguous free room at the end, at least `least` bytes. What is written there joins the stream by
    /// [`commit`](Self::commit); until then the same room, its content kept, is given again as long as `least` fits it.
    pub fn room(&mut self, pool: &mut Pool, least: usize) -> &mut [u8] {
        let fits = self
            .chunks
            .back()
            .is_some_and(|chunk| chunk.bytes.len() - chunk.len >= least);
        if !fits {
            self.chunks.push_back(Chunk {
                bytes: pool.take(least),
                start: self.end,
                len: 0,
            });
        }
        let chunk = self
            .chunks
            .back_mut()
            .expect("a chunk was pushed if there was none");
        &mut chunk.bytes[chunk.len..]
    }

    /// The first `n` bytes of the room belong to the stream now.
    pub fn commit(&mut self, n: usize) {
        if n == 0 {
            return;
        }
        let chunk = self
            .chunks
            .back_mut()
            .expect("room was taken before it is committed");
        assert!(
            n <= chunk.bytes.len() - chunk.len,
            "more committed than there was room"
        );
        chunk.len += n;
        self.end += n as u64;
    }

    /// Gives back every chunk whose bytes all lie below stream offset `acked`. With `keep_tail`, the last one stays even
    /// then: its free room holds an open record.
    pub fn release(&mut self, pool: &mut Pool, acked: u64, keep_tail: bool) {
        while let Some(chunk) = self.chunks.front() {
            let last = self.chunks.len() == 1;
            if chunk.start + chunk.len as u64 > acked || (last && keep_tail) {
                break;
            }
            if let Some(chunk) = self.chunks.pop_front() {
                pool.give(chunk.bytes);
            }
        }
    }

    /// Gives everything back.
    pub fn clear(&mut self, pool: &mut Pool) {
        for chunk in self.chunks.drain(..) {
            pool.give(chunk.bytes);
        }
    }

    /// Appends the slices that make up `range` of the stream to `out`.
    ///
    /// # Panics
    /// When part of the range was released or never committed: then TCP and arena disagree, and sending other bytes would
    /// be worse.
    pub fn slices<'a>(&'a self, range: Range<u64>, out: &mut Vec<IoSlice<'a>>) {
        if range.is_empty() {
            return;
        }
        let first = self
            .chunks
            .partition_point(|chunk| chunk.start + chunk.len as u64 <= range.start);
        let mut at = range.start;
        for chunk in self.chunks.iter().skip(first) {
            if at >= range.end {
                break;
            }
            assert!(
                chunk.start <= at,
                "a range below what the arena still holds"
            );
            let from = (at - chunk.start) as usize;
            let to = ((range.end - chunk.start) as usize).min(chunk.len);
            out.push(IoSlice::new(&chunk.bytes[from..to]));
            at = chunk.start + to as u64;
        }
        assert_eq!(at, range.end, "a range beyond what was committed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn collect(arena: &Arena, range: Range<u64>) -> Vec<u8> {
        let mut slices = Vec::new();
        arena.slices(range, &mut slices);
        slices.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn an_idle_socket_holds_nothing() {
        let (mut pool, mut arena) = (Pool::new(), Arena::new());
        arena.room(&mut pool, 30)[..30].fill(1);
        arena.commit(30);
        assert_eq!(arena.memory(), SMALL_CHUNK);
        arena.release(&mut pool, 29, false);
        assert_eq!(arena.memory(), SMALL_CHUNK);
        arena.release(&mut pool, 30, false);
        assert_eq!((arena.memory(), pool.in_use()), (0, 0));
    }

    #[test]
    fn an_open_record_keeps_its_room() {
        let (mut pool, mut arena) = (Pool::new(), Arena::new());
        arena.room(&mut pool, 100)[..10].fill(1);
        arena.commit(5);
        arena.release(&mut pool, 5, true);
        assert_eq!(&arena.room(&mut pool, 5)[..5], &[1; 5]);
    }

    proptest! {
        #[test]
        fn any_range_reads_what_was_committed(sizes in proptest::collection::vec(1usize..20_000, 1..60), cuts in proptest::collection::vec((any::<u32>(), any::<u32>()), 1..20)) {
            let (mut pool, mut arena) = (Pool::new(), Arena::new());
            let mut model = Vec::new();
            for (i, size) in sizes.into_iter().enumerate() {
                arena.room(&mut pool, size)[..size].fill(i as u8);
                arena.commit(size);
                model.resize(model.len() + size, i as u8);
            }
            let mut acked = 0;
            for (a, b) in cuts {
                let a = acked + u64::from(a) % (model.len() as u64 - acked + 1);
                let b = a + u64::from(b) % (model.len() as u64 - a + 1);
                prop_assert_eq!(collect(&arena, a..b), &model[a as usize..b as usize]);
                acked = acked.max(a.min(acked + 5_000));
                arena.release(&mut pool, acked, false);
            }
            arena.clear(&mut pool);
            prop_assert_eq!(pool.in_use(), 0);
        }
    }
}
