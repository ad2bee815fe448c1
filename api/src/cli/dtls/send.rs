//! `uktls dtls-send`: a file by in-stack `sendfile`, paced here.

use super::super::progress::Progress;
use super::super::{Context, Failure, Globals, Outcome};
use super::association::{self, Association, Meeting, Voice, broken_off, done, pace, records};
use super::options::SendArgs;
use serde_json::json;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use uktls::client::af_ktls::{AF_KTLS, KTLS_SET_MTU};

/// Records handed over at once where a rate is kept: a burst that the smallest of receive buffers holds.
const BURST: u64 = 16;
/// And where none is kept: often enough for the progress bar.
const UNPACED: u64 = 64 << 20;
/// How much of what was not sent in time may be caught up on at once, in bursts.
const CATCH_UP: u64 = 2;

/// Sends.
pub(crate) fn run(args: SendArgs, globals: &Globals) -> Outcome {
    let name = args.file.display().to_string();
    let failed = || format!("cannot read {name}");
    let file = File::open(&args.file).context(failed)?;
    let stat = file.metadata().context(failed)?;
    if !stat.is_file() {
        return Err(Failure::new(format_args!("{name} is no regular file")));
    }
    let outgoing = Outgoing {
        file,
        path: args.file,
        len: stat.len(),
        rate: args.rate,
        payload: args.payload,
    };
    let globals_here = globals.clone();
    association::run(
        args.peer,
        globals,
        false,
        broken_off(),
        move |meeting, voice| send(&outgoing, &meeting, voice, &globals_here),
    )
}

/// What is sent, and how.
struct Outgoing {
    file: File,
    path: std::path::PathBuf,
    len: u64,
    /// Bytes a second; 0 is no limit.
    rate: u64,
    payload: Option<u16>,
}

fn send(outgoing: &Outgoing, meeting: &Meeting, voice: Voice, globals: &Globals) -> Outcome {
    let mut association = meeting.associate()?;
    let overhead = association.overhead();
    let payload = match outgoing.payload {
        Some(payload) => usize::from(payload),
        None => association.datagram()? - overhead,
    };
    association
        .ktls
        .setsockopt(AF_KTLS, KTLS_SET_MTU, &(payload + overhead).to_ne_bytes())
        .context(|| format!("cannot send records of {payload} bytes"))?;
    let started = Instant::now();
    let progress = Progress::new(globals, Some(outgoing.len));
    transfer(outgoing, &association, payload as u64, &progress)?;
    drop(progress);
    let time = started.elapsed();
    let stat = association
        .ktls
        .stat()
        .context(|| "the daemon does not answer".into())?;
    let (peer, cipher) = (association.peer()?, association.cipher());
    let answered = association.close()?;
    voice.say(
        &json!({
            "file": outgoing.path,
            "peer": peer.to_string(),
            "cipher": cipher,
            "bytes": outgoing.len,
            "records": stat.sealed,
            "payload": payload,
            "seconds": time.as_secs_f64(),
            "close_answered": answered,
        }),
        &format!(
            "{} to {peer}: {} bytes in {} {}, {cipher}{}",
            outgoing.path.display(),
            outgoing.len,
            records(stat.sealed),
            pace(outgoing.len, time),
            match answered {
                true => "",
                false => "; the peer did not answer close_notify",
            }
        ),
    )?;
    done()
}

fn transfer(
    outgoing: &Outgoing,
    association: &Association,
    payload: u64,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut pacer = Pacer::new(outgoing.rate, payload);
    let mut sent = 0;
    while sent < outgoing.len {
        let step = pacer.next_burst().min(outgoing.len - sent);
        let now = association
            .ktls
            .sendfile(&outgoing.file, sent, step)
            .context(|| format!("cannot send {}", outgoing.path.display()))?;
        if now < step {
            return Err(cut(&outgoing.path, sent + now, outgoing.len));
        }
        sent += now;
        progress.at(sent);
    }
    Ok(())
}

fn cut(path: &Path, sent: u64, len: u64) -> Failure {
    Failure::new(format_args!(
        "{} got shorter while it was sent: {sent} of {len} bytes",
        path.display()
    ))
}

/// Says how much may go, when it may.
struct Pacer {
    burst: u64,
    /// How long a burst takes at the rate that is kept.
    every: Duration,
    due: Instant,
}

impl Pacer {
    fn new(rate: u64, payload: u64) -> Pacer {
        let (burst, every) = match rate {
            0 => (UNPACED / payload * payload, Duration::ZERO),
            rate => {
                // Whole records, of which a slow rate has few a burst: none waits for longer than a tenth of a second.
                let burst = (rate / 10 / payload).clamp(1, BURST) * payload;
                (burst, Duration::from_secs_f64(burst as f64 / rate as f64))
            }
        };
        Pacer {
            burst,
            every,
            due: Instant::now(),
        }
    }

    /// Waits for the next burst's turn, and gives its length.
    fn next_burst(&mut self) -> u64 {
        let now = Instant::now();
        let earliest = now.checked_sub(self.every * CATCH_UP as u32).unwrap_or(now);
        self.due = self.due.max(earliest);
        if self.due > now {
            std::thread::sleep(self.due - now);
        }
        self.due += self.every;
        self.burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_are_whole_records_and_small_ones_at_slow_rates() {
        for (rate, payload, burst) in [
            (0, 1400, UNPACED / 1400 * 1400),
            (16 << 20, 1400, 16 * 1400),
            (100_000, 1400, 7 * 1400),
            (1, 1400, 1400),
        ] {
            assert_eq!(Pacer::new(rate, payload).burst, burst, "{rate}");
        }
    }

    #[test]
    fn a_rate_is_kept() {
        let mut pacer = Pacer::new(1 << 20, 1 << 10);
        let start = Instant::now();
        let sent: u64 = (0..8).map(|_| pacer.next_burst()).sum();
        // The first goes at once.
        let least = Duration::from_secs_f64((sent - pacer.burst) as f64 / f64::from(1 << 20));
        assert!(start.elapsed() >= least);
    }
}
