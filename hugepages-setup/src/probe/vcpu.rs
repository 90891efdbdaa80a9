//! KVM.
#![expect(unsafe_code, reason = "one ioctl that nobody wraps")]

use super::open_both_ways;
use crate::{Root, Row, State};
use std::io;
use std::os::fd::AsRawFd;

/// The only version there has been since 2007.
const API_VERSION: i32 = 12;
/// `KVM_GET_API_VERSION`: `_IO(0xae, 0)`.
const GET_API_VERSION: libc::c_ulong = 0xae00;

/// Whether guests can run on the processor itself.
pub(crate) fn kvm(root: &Root) -> Row {
    const NEEDED: &str = "guests at full speed (without it: TCG)";
    const MEND: &str = "modprobe kvm_intel (or kvm_amd), and switch virtualisation on in the firmware";
    let row = |found: String| Row::ok("kvm", "KVM", found, NEEDED);
    let device = match open_both_ways(root, "dev/kvm") {
        Ok(device) => device,
        Err(fault) if fault.kind() == io::ErrorKind::PermissionDenied => {
            return row("/dev/kvm may not be opened".to_owned())
                .lacking(State::Limited, "adduser USER kvm, or run as root");
        }
        Err(fault) => return row(format!("/dev/kvm: {fault}")).lacking(State::Limited, MEND),
    };
    // SAFETY: the request has no argument, and answers a number on any descriptor that knows it.
    let version = unsafe { libc::ioctl(device.as_raw_fd(), GET_API_VERSION, 0) };
    if version == API_VERSION {
        row(format!("/dev/kvm, version {version}"))
    } else {
        row(format!("/dev/kvm answers {version}, not {API_VERSION}")).lacking(State::Limited, MEND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::tests::host;

    #[test]
    fn a_file_that_is_not_kvm_is_found_out() {
        let (_folder, root) = host(&[("dev/kvm", "")]);
        assert_eq!(kvm(&root).state, State::Limited);
        let (_folder, root) = host(&[]);
        assert_eq!(kvm(&root).state, State::Limited);
    }
}
