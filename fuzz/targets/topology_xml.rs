//! A machine's description: it is refused, or it can be used, and is the same when it was written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtree_topology::{Graph, Machine, diff, table};

fuzz_target!(|text: &str| {
    let machine = match Machine::from_xml(text) {
        Ok(machine) => machine,
        Err(error) => {
            assert!(error.to_string().starts_with("line "), "{error}");
            return;
        }
    };
    let (graph, _) = Graph::new(&machine);
    let _ = table(&machine, &graph);
    let again = Machine::from_xml(&machine.to_xml()).expect("what was written can be read");
    assert_eq!(Graph::new(&again), Graph::new(&machine));
    assert_eq!(diff(&machine, &again), []);
});
