//! Hosts and their slots, as a hostfile and as `--hosts` have them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtree_launcher::HostList;

fuzz_target!(|text: &str| {
    for list in [HostList::of_file(text), text.parse::<HostList>()].into_iter().flatten() {
        let shares = list.share(None).expect("each slot has a rank");
        let mut next = 0;
        for share in shares {
            assert!(
                share.ranks.start == next && !share.ranks.is_empty(),
                "{share:?} behind {next}"
            );
            next = share.ranks.end;
        }
        assert!(next > 0);
    }
});
