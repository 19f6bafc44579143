//! One thing changed at a time.

use crate::{Machine, diff};

const FIRST: &str = r#"<system version="1">
<cpu numaid="0" affinity="0f" arch="x86_64" vendor="AuthenticAMD">
<pci busid="0:1:0.0" class="0x060400" link_speed="32 GT/s" link_width="16">
<pci busid="0:2:0.0" link_speed="32 GT/s" link_width="16">
<gpu dev="0" sm="90"><nvlink target="0:4:0.0" count="4" tclass="0x030200"/><nvlink target="0:8:0.0" count="2" tclass="0x068000"/></gpu>
</pci>
<pci busid="0:3:0.0" link_speed="32 GT/s" link_width="16"><nic><net name="mlx5_0" dev="0" speed="400000" state="up"/></nic></pci>
</pci>
</cpu>
<cpu numaid="1" affinity="f0" arch="x86_64" vendor="AuthenticAMD">
<pci busid="0:4:0.0" link_speed="32 GT/s" link_width="16">
<gpu dev="1" sm="90"><nvlink target="0:2:0.0" count="4" tclass="0x030200"/></gpu>
</pci>
<nic><net name="eth0" dev="1" speed="25000"/></nic>
</cpu>
</system>"#;

fn differences(changes: &[(&str, &str)]) -> Vec<String> {
    let mut text = FIRST.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let read = |text: &str| Machine::from_xml(text).expect("a machine");
    diff(&read(FIRST), &read(&text)).iter().map(ToString::to_string).collect()
}

#[test]
fn equal_machines_do_not_differ() {
    assert_eq!(differences(&[]), Vec::<String>::new());
    // Which functions the NVSwitches have is of no importance.
    assert_eq!(differences(&[("0:8:0.0", "0:9:0.0")]), Vec::<String>::new());
}

#[test]
fn each_difference_is_named() {
    let cases: [(&[(&str, &str)], &str); 9] = [
        (
            &[(
                "busid=\"0:3:0.0\" link_speed=\"32 GT/s\" link_width=\"16\"",
                "busid=\"0:3:0.0\" link_speed=\"16 GT/s\" link_width=\"8\"",
            )],
            "card 0000:03:00.0 (mlx5_0): PCIe 32 GT/s x16 in the first, 16 GT/s x8 in the second",
        ),
        (
            &[("speed=\"400000\"", "speed=\"200000\"")],
            "port mlx5_0: speed 400 Gbit/s in the first, 200 Gbit/s in the second",
        ),
        (
            &[("state=\"up\"", "state=\"down\"")],
            "port mlx5_0: state up in the first, down in the second",
        ),
        (&[("<net name=\"eth0\" dev=\"1\" speed=\"25000\"/>", "")], "port eth0: only in the first"),
        (
            &[("affinity=\"f0\"", "affinity=\"30\"")],
            "NUMA1: processors 4-7 in the first, 4-5 in the second",
        ),
        (
            &[("count=\"2\"", "count=\"1\"")],
            "GPU0 (0000:02:00.0): NVLinks with NVSwitches 2 in the first, 1 in the second",
        ),
        (&[("numaid=\"1\"", "numaid=\"3\"")], "NUMA1: only in the first"),
        (
            &[("0:1:0.0", "0:9:0.0")],
            "GPU0 (0000:02:00.0): below 0000:01:00.0 in the first, 0000:09:00.0 in the second",
        ),
        (
            &[(
                "<gpu dev=\"1\" sm=\"90\"><nvlink target=\"0:2:0.0\" count=\"4\" tclass=\"0x030200\"/></gpu>",
                "",
            )],
            "GPU1 (0000:04:00.0): only in the first",
        ),
    ];
    for (changes, expected) in cases {
        let found = differences(changes);
        assert!(found.iter().any(|found| found == expected), "{expected}: {found:#?}");
    }
}

#[test]
fn a_gpu_at_another_place_is_the_same_and_so_are_its_links() {
    let found = differences(&[("0:4:0.0", "0:7:0.0")]);
    assert_eq!(
        found,
        ["GPU1 (0000:04:00.0): at 0000:04:00.0 in the first, 0000:07:00.0 in the second"]
    );
}

#[test]
fn what_only_the_second_has_is_named() {
    let gpu = "<pci busid=\"0:5:0.0\"><gpu dev=\"2\"/></pci><nic><net name=\"eth0\"";
    let found = differences(&[("<nic><net name=\"eth0\"", gpu)]);
    assert_eq!(found, ["GPU2 (0000:05:00.0): only in the second"]);
}
