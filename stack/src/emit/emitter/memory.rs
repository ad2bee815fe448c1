//! Memory as a source, for clients in the same process: what `sendfile` is to them.

use super::super::arena::{LARGE_CHUNK, Pool};
use super::{Emitter, Item, Step};
use crate::engine::{ClientEnd, RecordEvent};
use crate::socket_info::Reason;
use bytes::Bytes;
use uktls_record::header::ContentType;

/// Memory that is on its way: like a file, but nothing can happen to it.
#[derive(Debug)]
pub(super) struct MemoryRange {
    bytes: Bytes,
    done: usize,
}

impl MemoryRange {
    pub(super) fn new(bytes: Bytes) -> MemoryRange {
        MemoryRange { bytes, done: 0 }
    }
}

impl Emitter {
    /// Seals from memory into the arena, in one pass; without keys, copies.
    pub(super) fn seal_memory<E: ClientEnd>(
        &mut self,
        end: &mut E,
        pool: &mut Pool,
        room: usize,
    ) -> Result<Step, Reason> {
        let Item::Memory(range) = &mut self.item else {
            return Ok(Step::Go);
        };
        let payload = self.max_payload;
        let left = range.bytes.len() - range.done;
        if left == 0 {
            end.memory_sealed(range.done);
            self.item = Item::Bytes;
            return Ok(Step::Go);
        }
        let Some(sealer) = &mut self.sealer else {
            let take = left.min(room.max(1)).min(LARGE_CHUNK);
            self.arena.room(pool, take)[..take]
                .copy_from_slice(&range.bytes[range.done..range.done + take]);
            self.arena.commit(take);
            range.done += take;
            return Ok(Step::Go);
        };
        let overhead = sealer.overhead();
        let start = self.arena.end();
        let tail = self.arena.room(pool, left.min(payload) + overhead);
        let mut to = 0;
        while to < room {
            let take = (range.bytes.len() - range.done).min(payload);
            let len = take + overhead;
            if take == 0 || tail.len() - to < len {
                break;
            }
            let nonce = sealer.next_nonce();
            let sealed = sealer.seal_from(
                ContentType::APPLICATION_DATA,
                &range.bytes[range.done..range.done + take],
                &mut tail[to..to + len],
            );
            if let Err(error) = sealed {
                if to > 0 {
                    break;
                }
                tracing::info!("sending stops: {error}");
                return Err(Reason::KeysExhausted);
            }
            let at = start + to as u64;
            end.observe(|| RecordEvent::Sealed(at..at + len as u64, nonce));
            range.done += take;
            to += len;
            self.records += 1;
        }
        self.arena.commit(to);
        Ok(Step::Go)
    }
}
