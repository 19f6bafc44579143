//! A machine's description: it is refused, or it can be used, drawn and planned with, and is the same when it was
//! written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringtree_topology::search::{assign_nics, best_tree, rings};
use ringtree_topology::{Graph, Machine, diff, svg, table};

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
    let set = rings(&graph, &graph.gpus());
    let _ = svg(&machine, &graph, set.as_ref().ok());
    let _ = best_tree(&graph, &graph.gpus());
    let _ = assign_nics(&graph, &graph.gpus());
    let again = Machine::from_xml(&machine.to_xml()).expect("what was written can be read");
    assert_eq!(Graph::new(&again), Graph::new(&machine));
    assert_eq!(diff(&machine, &again), []);
});
