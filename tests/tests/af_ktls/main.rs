//! AF_KTLS: the contract, row by row, for both socket types, within this process and through real daemons.
//!
//! A [`Case`] is a row of one of the contract's tables, with the row's words; what it claims is in the function of its name. All run
//! on one ground after the other, each on sockets of its own, and those that fail are listed together.

#![allow(missing_docs, unreachable_pub)]

mod calls;
mod ground;
mod handling;
mod names;
mod openssl;
mod rehandshake;
mod sizes;
mod transfer;

use ground::Ground;
use rustix::io::Errno;
use std::panic::{AssertUnwindSafe, catch_unwind};
use uktls::client::af_ktls::*;

/// One row.
pub struct Case {
    name: &'static str,
    row: &'static str,
    kinds: &'static [KtlsType],
    run: fn(&Ground),
}

/// Writes a table: the function of each row, the types of sockets that it is about, and what the contract says.
macro_rules! table {
    ($($name:ident, $kinds:expr, $row:literal;)*) => {
        pub const CASES: &[crate::Case] = &[$(crate::Case {
            name: stringify!($name),
            row: $row,
            kinds: &$kinds,
            run: $name,
        }),*];
    };
}
use table;

const TABLES: [&[Case]; 6] = [
    names::CASES,
    calls::CASES,
    transfer::CASES,
    handling::CASES,
    sizes::CASES,
    rehandshake::CASES,
];

fn run_all(ground: &mut Ground, kind: KtlsType) {
    ground.kind = kind;
    let mut failed = Vec::new();
    for case in TABLES.into_iter().flatten() {
        if !case.kinds.contains(&kind) {
            continue;
        }
        println!("{kind:?}: {}: {}", case.name, case.row);
        if catch_unwind(AssertUnwindSafe(|| (case.run)(ground))).is_err() {
            failed.push(case.name);
        }
    }
    assert!(failed.is_empty(), "{kind:?}: {failed:?}");
}

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = TABLES.into_iter().flatten().map(|case| case.name).collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all);
}

/// Keys are read back by the owner only, and by nobody where the daemon says so; numbers are no secret.
fn keys_stay(ground: &mut Ground) {
    for kind in ground::BOTH {
        ground.kind = kind;
        let pair = ground.armed();
        for option in [
            KTLS_GET_KEY_RECV,
            KTLS_GET_KEY_SEND,
            KTLS_GET_SALT_RECV,
            KTLS_GET_SALT_SEND,
        ] {
            let error = pair.left.getsockopt(AF_KTLS, option, &mut [0; 16]);
            assert_eq!(ground::errno(error), Errno::PERM, "option {option}");
        }
        assert_eq!(ground::get(&pair.left, KTLS_GET_IV_SEND), ground::IV);
        assert_eq!(ground::get(&pair.left, KTLS_GET_IV_RECV), ground::IV);
    }
}

#[test]
fn keys_stay_in_process() {
    ground::in_process(true, keys_stay);
}

#[test]
fn keys_stay_in_daemons() {
    ground::daemons(&["--no-key-export"], keys_stay);
}

#[test]
fn streams_in_process() {
    ground::in_process(false, |ground| run_all(ground, KtlsType::Stream));
}

#[test]
fn datagrams_in_process() {
    ground::in_process(false, |ground| run_all(ground, KtlsType::Datagram));
}

#[test]
fn streams_through_daemons() {
    ground::daemons(&[], |ground| run_all(ground, KtlsType::Stream));
}

#[test]
fn datagrams_through_daemons() {
    ground::daemons(&[], |ground| run_all(ground, KtlsType::Datagram));
}
