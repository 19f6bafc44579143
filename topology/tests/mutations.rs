//! Damaged files: whatever is changed in a good one, reading gives an error or a machine that can be used.

use std::time::{Duration, Instant};

use ringtree_topology::search::{assign_nics, best_tree, rings};
use ringtree_topology::{Graph, Machine, check, diff, svg, table};

const FILES: [&str; 4] = [
    include_str!("files/nvlink-pairs.xml"),
    include_str!("files/flat-virtual-machine.xml"),
    include_str!("files/card-at-x8.xml"),
    r#"<system version="2"><cpu numaid="0" affinity="f,ff" arch="arm64" distances="0:10 1:40">
         <pci busid="0:1:0.0"><pcilink target="0:1:0.0"/><pci busid="0:2:0.0">
           <gpu dev="0" gcn="gfx942" arch="1"><xgmi target="0:2:0.0" count="1"/><c2c bw="40000" count="10"/>
           </gpu></pci></pci>
         <nic><net name="a&amp;b" dev="1" latency="1.5" guid="0x1"/></nic></cpu></system>"#,
];

/// What is put in at random places.
const TOKENS: [&str; 18] = [
    "<",
    ">",
    "\"",
    "'",
    "/>",
    "-1",
    "-",
    "0x",
    "ffffffffffffffff",
    "99999999999999999999",
    "1e300",
    "&amp;",
    "&x;",
    "<cpu>",
    "<pci busid=\"0:0:0.0\">",
    "<nic>",
    "<!--",
    "\u{fffd}é",
];

const TURNS: u64 = 40_000;
const LONGEST: Duration = Duration::from_secs(5);

#[test]
fn damaged_files_do_no_harm() {
    let start = Instant::now();
    let (mut read, mut refused) = (0, 0);
    for turn in 0..TURNS {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (turn + 1));
        let text = damaged(FILES[turn as usize % FILES.len()], &mut random);
        match Machine::from_xml(&text) {
            Ok(machine) => {
                read += 1;
                use_all(&machine, &text);
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().starts_with("line "), "{error}");
            }
        }
        if start.elapsed() > LONGEST {
            break;
        }
    }
    // Both happen often, or else this tests nothing.
    assert!(read > 100 && refused > 100, "read {read}, refused {refused}");
}

fn use_all(machine: &Machine, text: &str) {
    let (graph, _) = Graph::new(machine);
    let _ = table(machine, &graph);
    let _ = check(machine, &graph);
    let gpus = graph.gpus();
    let set = rings(&graph, &gpus).ok();
    let _ = svg(machine, &graph, set.as_ref());
    // Whoever has rings has a tree and is served.
    if set.is_some() {
        best_tree(&graph, &gpus).expect("a tree");
        assign_nics(&graph, &gpus).expect("ports");
    }
    let again = Machine::from_xml(&machine.to_xml()).expect("what was written");
    assert_eq!(Graph::new(&again), Graph::new(machine), "{text}");
    assert_eq!(diff(machine, &again), [], "{text}");
}

fn damaged(text: &str, random: &mut Random) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..1 + random.below(3) {
        let at = random.below(bytes.len());
        let end = (at + 1 + random.below(12)).min(bytes.len());
        match random.below(4) {
            0 => bytes[at] = random.below(256) as u8,
            1 => drop(bytes.drain(at..end)),
            2 => {
                let part = bytes[at..end].to_vec();
                let place = random.below(bytes.len());
                bytes.splice(place..place, part);
            }
            _ => {
                let token = TOKENS[random.below(TOKENS.len())].bytes();
                bytes.splice(at..at, token);
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Marsaglia's xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}
