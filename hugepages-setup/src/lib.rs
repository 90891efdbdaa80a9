//! What the host offers and what Holdfast needs of it: a report, then the one change it can make.
//!
//! [`inspect`] fills a [`Report`]: a row for each thing, how it was found, and the line that mends a
//! lack. Where a kernel feature decides, it is tried for real rather than concluded from a version:
//! userfaultfd's asynchronous write protection together with PAGEMAP_SCAN on a shared mapping, a
//! child seized by ptrace, a TAP interface made and dropped, an AF_XDP socket opened.
//!
//! [`reserve()`] is the only thing that changes the host: it adds huge pages, never takes any away, and
//! reports what the kernel really gave. A [`Loan`] adds pages for a while and gives back its own.
//!
//! Files under `/proc`, `/sys` and `/dev` are read below a [`Root`], so that tests bring their own.
//! A bad or missing file is a finding, never a panic.

mod cores;
mod kernel;
mod loan;
mod pages;
mod probe;
mod report;
mod reserve;
mod root;
mod versions;

pub use kernel::lacking_capabilities;
pub use loan::Loan;
pub use pages::{HugePages, huge_pages};
pub use report::{Report, Row, State};
pub use reserve::{Applied, ReserveError, Wish, reserve};
pub use root::Root;
pub use versions::Versions;

/// Looks at everything. Takes well under a second; starts two short-lived processes (a child for
/// ptrace, QEMU for its version) and leaves nothing behind.
#[must_use]
pub fn inspect(root: &Root, versions: &Versions) -> Report {
    let mut rows = Vec::new();
    rows.push(kernel::version(root));
    rows.push(kernel::privileges(root));
    rows.extend(pages::rows(root));
    rows.push(probe::kvm(root));
    rows.extend(probe::tracking());
    rows.push(probe::ptrace(root));
    rows.push(probe::tun(root));
    rows.push(probe::af_xdp());
    rows.extend(cores::rows(root));
    rows.extend(kernel::devices(root));
    rows.push(kernel::locked_memory(root));
    rows.extend(versions.rows());
    Report { rows }
}
