//! What launchers and people tell in the environment, a line of `NAME=value` each: places, lists of hosts, addresses.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use ringtree::Settings;

fuzz_target!(|text: &str| {
    let named = text.lines().filter_map(|line| line.split_once('='));
    let mut variables: HashMap<String, String> =
        named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    // Without one, ranks of a host would make a file for it.
    variables.insert("RINGTREE_SECRET".into(), "of all".into());
    if let Ok(settings) = Settings::from_variables(&variables) {
        assert!(settings.rank < settings.ranks, "{settings:?}");
    }
});
