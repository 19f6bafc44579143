//! Errors of the system that say that something has run out, told with what to do about it.

use std::io;

use nix::errno::Errno;

/// What the system said, and what to do where a limit was reached.
pub fn described(error: &io::Error) -> String {
    let remedy = error.raw_os_error().map_or("", |number| remedy(Errno::from_raw(number)));
    format!("{error}{remedy}")
}

/// What to do about an error; empty where no limit was reached.
pub(crate) fn remedy(error: Errno) -> &'static str {
    match error {
        Errno::EMFILE => {
            "; this process may have no more descriptors: raise that with `ulimit -n`, LimitNOFILE= of a \
             systemd service, or `docker run --ulimit nofile=N`"
        }
        Errno::ENFILE => {
            "; the whole system may have no more descriptors: raise that with `sysctl fs.file-max=N`"
        }
        Errno::ENOMEM => {
            "; use less memory, or raise what this process (`ulimit -v`), its container or \
             `sysctl vm.max_map_count` allow"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_out_is_told_with_what_to_do() {
        let told = described(&Errno::EMFILE.into());
        assert!(told.starts_with("Too many open files") && told.contains("ulimit -n"), "{told}");
        assert_eq!(described(&io::Error::other("no limit")), "no limit");
    }
}
