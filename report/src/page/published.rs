//! What others published, with the source of each figure and what was read of it.
//!
//! Only what was read is here. Where that was an abstract, the figure is the abstract's; where no figure could
//! be read, the table says so. Other machines, other links, other years: orders of magnitude at best.

use super::words;
use crate::aims::stream_ratio;
use crate::run::{Mode, Run};
use maud::{Markup, html};

/// One published system.
struct Published {
    system: &'static str,
    /// Authors, title, venue, year.
    source: &'static str,
    /// What was read, and where.
    read: Read,
    setup: &'static str,
    /// In words of our own.
    figure: &'static str,
    /// What this run has to set beside it.
    here: fn(&Run) -> Option<String>,
}

/// How much of a source was read.
enum Read {
    /// The abstract alone, here.
    Abstract(&'static str),
    /// What is named, here.
    Part(&'static str, &'static str),
    /// Nothing.
    Nothing,
}

const NO_FIGURE: &str = "not found in a source that could be read";

const PUBLISHED: [Published; 15] = [
    Published {
        system: "speculative communication",
        source: "B. Gerofi, Y. Ishikawa: Enhancing TCP throughput of highly available virtual machines via speculative \
            communication. VEE 2012",
        read: Read::Abstract("https://dl.acm.org/doi/10.1145/2365864.2151038"),
        setup: "replication by checkpoints; machines, links and epochs are not in the abstract",
        figure: "bulk data with speculative communication: up to ten times as fast as with the basic protocol",
        here: |run| ratios(run, Mode::Speculative, Mode::Commit, "speculative to commit"),
    },
    Published {
        system: "replication-aware congestion control",
        source: "the same",
        read: Read::Abstract("https://dl.acm.org/doi/10.1145/2365864.2151038"),
        setup: "as above, the guest's TCP changed",
        figure: "close to the network speed of a VM without protection (no number in the abstract)",
        here: |run| ratios(run, Mode::Aware, Mode::Native, "aware to native"),
    },
    Published {
        system: "replication by RDMA",
        source: "B. Gerofi, Y. Ishikawa: RDMA based replication of multiprocessor virtual machines over high-performance \
            interconnects. CLUSTER 2011, pp. 35-44",
        read: Read::Abstract("https://m.booksci.cn/literaturecn/131262514.htm"),
        setup: "RDMA interconnect, fine-grained copy-on-write, guests of up to 16 vCPUs",
        figure: "overhead called acceptable up to 16 vCPUs (no number in the abstract)",
        here: |_| None,
    },
    Published {
        system: "Remus",
        source: "B. Cully, G. Lefebvre, D. Meyer, M. Feeley, N. Hutchinson, A. Warfield: Remus: high availability via \
            asynchronous virtual machine replication. NSDI 2008",
        read: Read::Part(
            "abstract and introduction's beginning",
            "https://www.usenix.org/legacy/event/nsdi08/tech/full_papers/cully/cully_html/index.html",
        ),
        setup: "Xen, checkpoints to a second host, output held until they are there",
        figure: "up to 40 checkpoints a second (every 25 ms); failover within seconds. The evaluation's figures were not in \
            what could be read",
        here: |_| None,
    },
    Published {
        system: "Remus, its evaluation at second hand",
        source: "MIT 6.824, lecture 3 of 2015, on the paper above; notes kept by alinush",
        read: Read::Part(
            "the notes",
            "https://github.com/alinush/6.824-lecture-notes/blob/master/l03-fault-tolerance.md",
        ),
        setup: "as above; SPECweb2005 needs about 100 ms a checkpoint",
        figure: "a half to a quarter of native speed",
        here: |run| ratios(run, Mode::Commit, Mode::Native, "commit to native"),
    },
    Published {
        system: "RemusDB",
        source: "U. F. Minhas, S. Rajagopalan, B. Cully, A. Aboulnaga, K. Salem, A. Warfield: RemusDB: transparent high \
            availability for database systems. PVLDB 2011; VLDB Journal 22 (2013), pp. 29-45",
        read: Read::Abstract("https://link.springer.com/article/10.1007%2Fs00778-012-0294-6"),
        setup: "two database systems on Remus, industry's standard benchmarks",
        figure: "Remus as it is: up to 32 % slower than without; failover in 3 s or less once optimised",
        here: |_| None,
    },
    Published {
        system: "Kemari",
        source: "Y. Tamura et al.: Kemari: virtual machine synchronization for fault tolerance (cited as of 2008 and of 2010)",
        read: Read::Nothing,
        setup: "Xen, later KVM, as others say",
        figure: NO_FIGURE,
        here: |_| None,
    },
    Published {
        system: "HBFT, optimised",
        source: "J. Zhu, Z. Jiang, Z. Xiao, X. Li: Optimizing the performance of virtual machine synchronization for fault \
            tolerance. IEEE Transactions on Computers, 2011",
        read: Read::Abstract("http://hinet.lindayi.me/paper.php?id=1646258"),
        setup: "checkpoints every tens to hundreds of milliseconds, memory-intensive applications",
        figure: "about 60 % of native; 1.4 to 2.2 times as fast as before the optimisations",
        here: |_| None,
    },
    Published {
        system: "VM-µCheckpoint",
        source: "L. Wang, Z. Kalbarczyk, R. K. Iyer, A. Iyengar: Checkpointing virtual machines against transient errors \
            (venue and year are not in what could be read)",
        read: Read::Abstract(
            "https://mafiadoc.com/checkpointing-virtual-machines-against-transient-semantic-scholar_59900f881723ddcf69a3f20b.html",
        ),
        setup: "Xen, checkpoints every 50 ms into volatile memory, SPEC CINT2006",
        figure: "6.3 % more execution time",
        here: |_| None,
    },
    Published {
        system: "HydraVM",
        source: "K.-Y. Hou, M. Uysal, A. Merchant, K. G. Shin, S. Singhal: HydraVM: low-cost, transparent high availability for \
            virtual machines. HP Laboratories, HPL-2011-24, 2011",
        read: Read::Abstract("http://www.hpl.hp.com/techreports/2011/HPL-2011-24.html"),
        setup: "incremental checkpoints in shared storage instead of a backup's memory",
        figure: "a failed VM runs again within 1.6 s; overhead called low (no number in the abstract)",
        here: |_| None,
    },
    Published {
        system: "VMware FT",
        source: "VMware: The design and evaluation of a practical system for fault-tolerant virtual machines. Technical \
            report, 2010",
        read: Read::Abstract(
            "http://www.vmware.com/techpapers/2010/the-design-and-evaluation-of-a-practical-system-fo-10134.html",
        ),
        setup: "vSphere 4.0, execution replayed on a second server instead of checkpoints",
        figure: "real applications typically lose less than 10 %",
        here: |_| None,
    },
    Published {
        system: "COLO",
        source: "Y. Dong, W. Ye, Y. Jiang, I. Pratt, S. Ma, J. Li, H. Guan: COLO: coarse-grained lock-stepping virtual machines \
            for non-stop service. SoCC 2013",
        read: Read::Abstract("https://m.booksci.cn/literature/133074351.htm"),
        setup: "both machines run, checkpoints only when their answers differ",
        figure: "called significantly faster than earlier approaches (no number in the part of the abstract that could be \
            read)",
        here: |_| None,
    },
    Published {
        system: "QEMU micro-checkpointing (MC)",
        source: "M. R. Hines: micro-checkpointing for QEMU. Patches on qemu-devel, 2013 and 2014",
        read: Read::Part("cover letter, and the README of a copy", "https://github.com/ashwani29/QEMU-MC"),
        setup: "KVM, over TCP or RDMA, a checkpoint every 100 ms by default",
        figure: NO_FIGURE,
        here: |_| None,
    },
    Published {
        system: "Cuju",
        source: "TCP performance optimization for epoch-based execution. APSys 2017 (authors are not in what could be read)",
        read: Read::Abstract("https://unpaywall.org/10.1145%2F3124680.3124726"),
        setup: "KVM, epochs, TCP optimised outside the guest, MTU 1500",
        figure: "most of the loss of TCP's speed is gone (no number in the abstract)",
        here: |_| None,
    },
    Published {
        system: "PLOVER",
        source: "PLOVER: fast, multi-core scalable virtual machine fault-tolerance. NSDI 2018",
        read: Read::Abstract("https://haoran-qiu.com/publication/plover-2018/"),
        setup: "the same order of inputs on both hosts, only pages that differ are sent",
        figure: "2.2 to 3.8 times the throughput of three primary-backup systems on several cores",
        here: |_| None,
    },
];

pub(super) fn section(run: &Run) -> Markup {
    html! {
        p { "Figures that were read in the source that is named, on the machines of their time. They say what such systems "
            "reach, not which is better: nothing here was measured side by side." }
        div.scroll {
            table {
                thead { tr { th { "system" } th { "published figure" } th { "setup" } th { "this run" } th { "source" } } }
                tbody {
                    @for of in &PUBLISHED {
                        tr {
                            td { (of.system) } td { (of.figure) } td { (of.setup) }
                            td { ((of.here)(run).unwrap_or_else(|| "-".into())) }
                            td { (of.source) ". " (read(&of.read)) }
                        }
                    }
                }
            }
        }
    }
}

fn read(read: &Read) -> Markup {
    html! {
        span.soft {
            @match read {
                Read::Abstract(at) => { "Read: the abstract, " a href=(at) { "here" } "." },
                Read::Part(what, at) => { "Read: " (what) ", " a href=(at) { "here" } "." },
                Read::Nothing => "Could not be read.",
            }
        }
    }
}

/// One mode's stream to another's, at each epoch that the run has.
fn ratios(run: &Run, mode: Mode, to: Mode, what: &str) -> Option<String> {
    let mut epochs: Vec<u64> = run.streams().map(|row| row.epoch_ms).collect();
    epochs.sort_unstable();
    epochs.dedup();
    let found: Vec<String> = epochs
        .into_iter()
        .filter_map(|epoch_ms| {
            let ratio = stream_ratio(run, epoch_ms, mode, to)?;
            Some(format!("{} at {epoch_ms} ms", words::number(ratio)))
        })
        .collect();
    (!found.is_empty()).then(|| format!("{what}: {}", found.join(", ")))
}
