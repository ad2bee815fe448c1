//! Processor time and memory of other processes, as /proc tells them.
//!
//! Two counts exist. `schedstat` counts nanoseconds but forgets threads that have ended; `stat` remembers them but counts in
//! ticks of 10 ms. Over an interval the first is used, unless the second shows that something was forgotten. Both hold what the kernel
//! did *in the context* of the process, network softirqs included, and nothing of what it did elsewhere on its behalf.

use super::super::{Context, Failure};
use std::collections::BTreeMap;
use std::fs;

/// Ticks may be off by one at either end, for user and for system time each.
const TICK_ERROR_SECONDS: f64 = 0.04;

/// The processor time that some processes and all their descendants have used so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct CpuTime {
    /// Nanoseconds by thread.
    threads: BTreeMap<u32, u64>,
    /// User and system seconds, ended threads included.
    ticks_seconds: f64,
}

impl CpuTime {
    /// Looks at these processes, and at what they have started.
    pub(crate) fn of(processes: &[u32]) -> Result<CpuTime, Failure> {
        let mut sum = CpuTime::default();
        for pid in with_descendants(processes) {
            let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
                Ok(stat) => stat,
                Err(_) if !processes.contains(&pid) => continue, // a child that has just ended
                Err(error) => {
                    return Err(error)
                        .context(|| format!("cannot read the CPU time of process {pid}"));
                }
            };
            let stat = ProcessStat::parse(&stat)
                .ok_or_else(|| Failure::new(format_args!("/proc/{pid}/stat is not understood")))?;
            sum.ticks_seconds += stat.ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let id = task.file_name().to_str().and_then(|name| name.parse().ok());
                let spent = fs::read_to_string(task.path().join("schedstat"));
                if let (Some(id), Ok(spent)) = (id, spent)
                    && let Some(nanoseconds) = parse_schedstat(&spent)
                {
                    sum.threads.insert(id, nanoseconds);
                }
            }
        }
        Ok(sum)
    }

    /// Seconds used since `earlier`.
    pub(crate) fn since(&self, earlier: &CpuTime) -> f64 {
        let nanoseconds: u64 = self
            .threads
            .iter()
            .map(|(id, now)| now.saturating_sub(*earlier.threads.get(id).unwrap_or(&0)))
            .sum();
        let precise = nanoseconds as f64 / 1e9;
        let complete = self.ticks_seconds - earlier.ticks_seconds;
        if complete > precise + TICK_ERROR_SECONDS {
            complete
        } else {
            precise
        }
    }
}

/// What `/proc/PID/stat` says, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
struct ProcessStat {
    parent: u32,
    /// User and system time.
    ticks: u64,
}

impl ProcessStat {
    /// See proc_pid_stat(5). The second field is the program's name in parentheses, which may itself hold blanks and parentheses.
    fn parse(text: &str) -> Option<ProcessStat> {
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first field here is the third of the file, so the page's field n is at n - 3.
        let user: u64 = fields.get(14 - 3)?.parse().ok()?;
        let system: u64 = fields.get(15 - 3)?.parse().ok()?;
        Some(ProcessStat {
            parent: fields.get(4 - 3)?.parse().ok()?,
            ticks: user + system,
        })
    }
}

/// First field: nanoseconds spent on a processor.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// These processes and all that descend from them.
fn with_descendants(roots: &[u32]) -> Vec<u32> {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok());
        if let Some(pid) = pid
            && let Ok(stat) = fs::read_to_string(entry.path().join("stat"))
            && let Some(stat) = ProcessStat::parse(&stat)
        {
            parents.insert(pid, stat.parent);
        }
    }
    descend(roots, &parents)
}

fn descend(roots: &[u32], parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut found = roots.to_vec();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        for (&child, &its_parent) in parents {
            if its_parent == parent && !found.contains(&child) {
                found.push(child);
            }
        }
        next += 1;
    }
    found
}

/// Resident memory of a process in bytes: all of it, and what is its alone (not file-backed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) anonymous: u64,
}

impl Memory {
    /// Looks at this process.
    pub(super) fn of(pid: u32) -> Result<Memory, Failure> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))
            .context(|| format!("cannot read the memory of process {pid}"))?;
        Memory::parse(&text)
            .ok_or_else(|| Failure::new(format_args!("/proc/{pid}/status is not understood")))
    }

    fn parse(status: &str) -> Option<Memory> {
        let kilobytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some(Memory {
            resident: kilobytes("VmRSS:")? * 1024,
            anonymous: kilobytes("RssAnon:")? * 1024,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4711 (a (strange) name) S 42 4711 4711 0 -1 4194560 2040 0 0 0 150 25 0 0 20 0 3 0 100 0 0";

    #[test]
    fn a_stat_line_is_read_behind_its_last_parenthesis() {
        assert_eq!(
            ProcessStat::parse(STAT),
            Some(ProcessStat {
                parent: 42,
                ticks: 175
            })
        );
        assert_eq!(ProcessStat::parse("4711 (short) S 42"), None);
        assert_eq!(ProcessStat::parse(""), None);
    }

    #[test]
    fn schedstat_begins_with_nanoseconds() {
        assert_eq!(parse_schedstat("883287 82231 3\n"), Some(883_287));
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn descendants_are_found_through_generations() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (5, 1), (6, 99)]);
        let mut found = descend(&[2, 6], &parents);
        found.sort();
        assert_eq!(found, [2, 3, 4, 6]);
    }

    #[test]
    fn new_threads_count_in_full_and_forgotten_ones_are_noticed() {
        let at = |threads: &[(u32, u64)], ticks_seconds| CpuTime {
            threads: threads.iter().copied().collect(),
            ticks_seconds,
        };
        let start = at(&[(1, 1_000_000_000)], 1.0);
        let grown = at(&[(1, 1_500_000_000), (2, 250_000_000)], 1.76);
        assert_eq!(grown.since(&start), 0.75);
        // A thread came and went in between: only the ticks have seen it.
        let lost = at(&[(1, 1_500_000_000)], 2.5);
        assert_eq!(lost.since(&start), 1.5);
    }

    #[test]
    fn this_process_has_used_time_and_memory() {
        let before = CpuTime::of(&[std::process::id()]).unwrap();
        let mut sum = 0u64;
        for i in 0..5_000_000u64 {
            sum = std::hint::black_box(sum ^ i);
        }
        let after = CpuTime::of(&[std::process::id()]).unwrap();
        assert!(after.since(&before) > 0.0);
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.anonymous > 0 && memory.resident >= memory.anonymous);
    }

    #[test]
    fn memory_is_read_from_the_status_file() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\n";
        assert_eq!(
            Memory::parse(status),
            Some(Memory {
                resident: 2 << 20,
                anonymous: 1 << 20
            })
        );
    }
}
