//! Machines with changes, and what those change about the rings.

use super::program::{Folder, document, printed, refused, sample};

#[test]
fn a_machine_without_a_device_is_another_machine() {
    let folder = Folder::new("without");
    let file = sample("nvlink-pairs.xml");
    let less = folder.path("less.xml");
    printed(&format!("topo --xml {file} --without GPU3,mlx5_0 --write-xml {less}"), 0);
    let difference = printed(&format!("topo --diff {file} {less}"), 1);
    for line in ["GPU3 (0000:71:00.0): only in the first", "port mlx5_0: only in the first"] {
        assert!(difference.contains(line), "{line}: {difference}");
    }
    let tree = printed(&format!("topo --xml {less}"), 0);
    assert!(!tree.contains("GPU3") && !tree.contains("which is not here"), "{tree}");
    // By its bus id the same, with all that is below.
    let by_place = printed(&format!("topo --xml {file} --without 61:00.0 -m"), 0);
    assert!(by_place.contains("GPU3") && !by_place.contains("GPU2"), "{by_place}");
}

#[test]
fn what_if_compares_the_rings() {
    let file = sample("nvlink-pairs.xml");
    let what_if =
        |change: &str| document(&format!("topo --xml {file} --what-if --json {change}"), 0);
    // A pair alone has its bridge.
    let pair = what_if("--without GPU2 --without GPU3");
    assert_eq!(pair["changes"], serde_json::json!(["without GPU2", "without GPU3"]));
    assert_eq!((&pair["now"]["devices"], &pair["then"]["devices"]), (&4.into(), &2.into()));
    assert_eq!(pair["now"]["rings_bytes_per_s"], 16e9);
    let gain = pair["then"]["rings_bytes_per_s"].as_f64().expect("a number");
    assert!(gain >= 240e9, "{gain}");
    // Less than the link between sockets.
    let narrow = what_if("--link GPU0=8x4 --link GPU1=8x4");
    let loss = narrow["then"]["rings_bytes_per_s"].as_f64().expect("a number");
    assert!(loss < 16e9, "{narrow}");
    let port = what_if("--link mlx5_0=50G");
    let off = |when: &str| port[when]["ports_bytes_per_s"].as_f64().expect("a number");
    assert_eq!((off("now"), off("then")), (12.5e9, 6.25e9));
    let text = printed(&format!("topo --xml {file} --what-if --link mlx5_0=50G"), 0);
    assert!(text.starts_with("# What if: mlx5_0 at 50 Gbit/s instead of 100 Gbit/s\n"), "{text}");
    let off = text.lines().find(|line| line.contains("off the host")).expect("a row");
    let words: Vec<&str> = off.split_whitespace().collect();
    assert_eq!(words, ["off", "the", "host", "12.5", "6.2", "-50.0", "%"]);
}

#[test]
fn changes_that_cannot_be_are_refused_with_what_there_is() {
    let file = sample("nvlink-pairs.xml");
    for (change, said) in [
        ("--without GPU9", "there is no GPU9: there are GPU0, GPU1, GPU2, GPU3, mlx5_0"),
        ("--link 0000:99:00.0=16x8", "there is no 0000:99:00.0"),
        ("--link mlx5_0=16x8", "mlx5_0 is a port: give it a speed such as 400G"),
        ("--link GPU0=400G", "GPU0 is a PCI device: give it a link such as 32x16"),
        ("--link GPU0", "write GPU3=32x16"),
        ("--link GPU0=16x99", "write GPU3=32x16"),
        ("", "give --without DEVICE or --link DEVICE=LINK"),
        ("--without GPU0,GPU1,GPU2,GPU3 --link GPU0=16x8", "there is no GPU0"),
    ] {
        let stderr = refused(&format!("topo --xml {file} --what-if {change}"));
        assert!(stderr.contains(said), "{change}: {stderr}");
    }
}
