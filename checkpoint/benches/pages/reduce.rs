//! Pages made smaller.

use crate::measure::{Bench, PAGES};
use crate::memory::{Pages, numbered};
use holdfast_checkpoint::pages::{PAGE_SIZE, PageIndex};
use holdfast_checkpoint::reduction::{Reducer, Reduction, Way, is_zero};
use std::hint::black_box;

pub(crate) fn reducer(ways: &[Way]) -> Reducer {
    let all = (PAGES * PAGE_SIZE) as u64;
    let reduction = Reduction { ways: ways.to_vec(), cache: Some(all), adaptive: false };
    // None where no way refers to what was sent.
    Reducer::new(&reduction, reduction.cache_bytes(all, PAGE_SIZE as u64))
}

/// A reducer that has sent these pages.
pub(crate) fn after(ways: &[Way], sent: &[u8]) -> Reducer {
    let mut reducer = reducer(ways);
    reduce(&mut reducer, 0, sent);
    reducer
}

fn reduce(reducer: &mut Reducer, first: u64, bytes: &[u8]) {
    for (page, bytes) in numbered(bytes) {
        black_box(reducer.reduce(PageIndex(first + page.0), bytes));
    }
}

pub(crate) fn measure(bench: &Bench, Pages { zeros, noise, near, text }: &Pages) {
    let looks = [("all zeros is seen", zeros, true), ("not all zeros is seen", noise, false)];
    for (what, bytes, is_blank) in looks {
        let look = |(): &mut ()| {
            assert!(black_box(bytes).chunks_exact(PAGE_SIZE).all(|page| is_zero(page) == is_blank));
        };
        bench.line("reduce", what, || (), look);
    }
    let page = &zeros[..PAGE_SIZE];
    let look = |(): &mut ()| assert!((0..PAGES).all(|_| is_zero(black_box(page))));
    bench.line("reduce", "all zeros is seen in the cache", || (), look);

    let all = || reducer(&Way::ALL);
    let adaptive = || Reducer::new(&Reduction::default(), (PAGES * PAGE_SIZE) as u64);
    bench.line("reduce", "all ways, of zeros", all, |by| reduce(by, 0, zeros));
    bench.line("reduce", "all ways, of noise", all, |by| reduce(by, 0, noise));
    bench.line("reduce", "all ways that pay, of noise", adaptive, |by| reduce(by, 0, noise));

    let sent = |way| move || after(&[way], noise);
    bench.line("reduce", "unchanged", sent(Way::Unchanged), |by| reduce(by, 0, noise));
    bench.line("reduce", "equal to another", sent(Way::Equal), |by| reduce(by, PAGES as u64, noise));
    let fresh = |way| move || reducer(&[way]);
    bench.line("reduce", "equal to none, kept in fresh memory", fresh(Way::Equal), |by| reduce(by, 0, noise));
    bench.line("reduce", "equal to none, kept in place of another", sent(Way::Equal), |by| {
        reduce(by, PAGES as u64, near);
    });
    bench.line("reduce", "delta", sent(Way::Delta), |by| reduce(by, 0, near));
    bench.line("reduce", "no delta: all differs", sent(Way::Delta), |by| reduce(by, 0, text));
    bench.line("reduce", "compressed", fresh(Way::Compress), |by| reduce(by, 0, text));
    bench.line("reduce", "not compressed for all that", fresh(Way::Compress), |by| reduce(by, 0, noise));
}
