//! `holdfast keys`: the keys of a pair of hosts.

use crate::cli::Failure;
use std::path::Path;

/// Makes both folders; refuses to overwrite keys that are there.
pub(crate) fn run(first: &Path, second: &Path) -> Result<(), Failure> {
    if first == second {
        return Err(Failure::Usage("both folders are the same; mend: name one for each host".into()));
    }
    holdfast_checkpoint::keys::make_pair(first, second).map_err(|fault| Failure::Usage(fault.to_string()))?;
    println!(
        "Made the keys of a pair. Each folder holds one host's own key and certificate and its peer's certificate.\n\
         Copy {} to the first host and {} to the second, as the folder that replication.keys names;\n\
         then delete them here: whoever has them can take the VM over.",
        first.display(),
        second.display()
    );
    Ok(())
}
