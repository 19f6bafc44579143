//! `sim --topology`: predictions beside sums made by hand.

use serde_json::Value;

use super::program::{document, printed, refused, sample};

#[track_caller]
fn row(arguments: &str, algorithm: &str) -> Value {
    let document = document(&format!("sim {arguments} --json"), 0);
    let rows = document["rows"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["algorithm"] == algorithm);
    row.unwrap_or_else(|| panic!("no {algorithm} in {document}")).clone()
}

#[track_caller]
fn assert_near(found: &Value, expected: f64) {
    let found = found.as_f64().expect("a number");
    assert!((found - expected).abs() <= 1e-6 * expected, "{found}, not {expected}");
}

/// All rings of four GPUs go over the link between the sockets, which has 16 GB/s.
#[test]
fn a_ring_takes_what_one_computes_by_hand() {
    let pairs = sample("nvlink-pairs.xml");
    for (collective, rounds, bus) in [
        ("all-reduce", 1.5, 1.5),
        ("all-gather", 0.75, 0.75),
        ("reduce-scatter", 0.75, 0.75),
        ("broadcast", 1.0, 1.0),
    ] {
        let ring = row(&format!("{collective} --topology {pairs} --bytes 1G"), "ring");
        let latency_us = ring["latency_us"].as_f64().expect("a number");
        let time_us = latency_us + rounds * f64::from(1 << 30) / 16e9 * 1e6;
        assert_near(&ring["time_us"], time_us);
        assert_near(&ring["algbw_GBps"], f64::from(1 << 30) / time_us / 1e3);
        assert_near(&ring["busbw_GBps"], f64::from(1 << 30) / time_us / 1e3 * bus);
    }
    // Of a few bytes nothing counts but latency: 6 of the 4 hops that a ring has, which are 600 ns over
    // each of two bridges, and twice two devices' 500 ns and the 100 ns between sockets.
    let ring = row(&format!("all-reduce --topology {pairs} --bytes 4"), "ring");
    assert_near(&ring["latency_us"], 6.0 / 4.0 * (2.0 * 0.6 + 2.0 * 1.1));
}

/// Each GPU has 18 links of 20.6 GB/s with the switches: every block leaves and arrives by them.
#[test]
fn blocks_of_an_all_to_all_cross_the_links_of_their_gpus() {
    let switched = sample("nvswitch-8gpu-8nic.xml");
    let direct = row(&format!("all-to-all --topology {switched} --bytes 1G"), "direct");
    let latency_us = direct["latency_us"].as_f64().expect("a number");
    assert_near(&direct["latency_us"], 0.6);
    let transfer_us = 7.0 / 8.0 * f64::from(1 << 30) / (18.0 * 20.6e9) * 1e6;
    assert_near(&direct["time_us"], latency_us + transfer_us);
    // A gather's root takes all in.
    let gather = row(&format!("gather --topology {switched} --bytes 1G"), "direct");
    assert_near(&gather["time_us"], latency_us + transfer_us);
    // Of eight GPUs on two hosts each sends half of its blocks over its port of 50 GB/s.
    let two = row(&format!("all-to-all --topology {switched} --hosts 2 --bytes 1G"), "direct");
    let time_us = 8.0 / 16.0 * f64::from(1 << 30) / 50e9 * 1e6;
    let latency_us = two["latency_us"].as_f64().expect("a number");
    assert_near(&two["time_us"], latency_us + time_us);
}

#[test]
fn several_hosts_are_as_fast_as_their_ports() {
    let switched = sample("nvswitch-8gpu-8nic.xml");
    let document =
        document(&format!("sim all-reduce --topology {switched} --hosts 4 --bytes 1G --json"), 0);
    assert_eq!(
        (&document["ranks"], document["hosts"].as_array().map(Vec::len)),
        (&32.into(), Some(4))
    );
    // Eight ports of 400 Gbit/s.
    assert_near(&document["rings_bytes_per_s"], 8.0 * 50e9);
    let rows = document["rows"].as_array().expect("rows");
    let time = |algorithm: &str| {
        let row = rows.iter().find(|row| row["algorithm"] == algorithm).expect("a row");
        row["time_us"].as_f64().expect("a number") - row["latency_us"].as_f64().expect("a number")
    };
    assert!((time("ring") - 2.0 * 31.0 / 32.0 * f64::from(1 << 30) / 400e9 * 1e6).abs() < 1.0);
    // In the tree inside a host a GPU sends to two others over its links of 370.8 GB/s.
    assert!((time("tree") - f64::from(1 << 30) / 185.4e9 * 1e6).abs() < 1.0);
    // Of few bytes the tree is first, since it has fewer hops.
    let table = printed(&format!("sim all-reduce --topology {switched} --hosts 4 --bytes 8"), 0);
    let first = table.lines().find(|line| !line.starts_with('#')).expect("a row");
    assert!(first.trim_start().starts_with("tree"), "{table}");
    assert!(table.contains("# 4 x nvswitch-8gpu-8nic with 8 ranks\n"), "{table}");
}

#[test]
fn unlike_hosts_have_the_rings_of_the_weakest() {
    let (pairs, switched) = (sample("nvlink-pairs.xml"), sample("nvswitch-8gpu-8nic.xml"));
    let table = printed(&format!("sim all-reduce --topology {pairs},{switched} --bytes 1G"), 0);
    assert!(table.contains("among 12 ranks on 2 hosts, predicted"), "{table}");
    let ring = row(&format!("all-reduce --topology {pairs},{switched} --bytes 1G"), "ring");
    assert!(ring["limited_by"].as_str().expect("words").starts_with("nvlink-pairs: "), "{ring}");
    // One port of 100 Gbit/s.
    let time_us = 2.0 * 11.0 / 12.0 * f64::from(1 << 30) / 12.5e9 * 1e6;
    assert_near(&ring["time_us"], time_us + ring["latency_us"].as_f64().expect("a number"));
}

#[test]
fn every_collective_is_predicted_for_one_rank_and_for_none() {
    let (one, pairs) = (sample("card-at-x8.xml"), sample("nvlink-pairs.xml"));
    for collective in [
        "all-reduce",
        "broadcast",
        "barrier",
        "all-gather",
        "reduce-scatter",
        "reduce",
        "gather",
        "scatter",
        "all-to-all",
    ] {
        for machine in [&one, &pairs] {
            for bytes in ["0", "64M"] {
                let arguments = format!("sim {collective} --topology {machine} --bytes {bytes}");
                let table = printed(&arguments, 0);
                let rows = table.lines().filter(|line| !line.starts_with('#')).count();
                assert!(rows >= 1 && !table.contains("NaN") && !table.contains("inf"), "{table}");
                assert_eq!(printed(&arguments, 0), table);
            }
        }
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let file = sample("nvlink-pairs.xml");
    for (arguments, said) in [
        (format!("--topology {file} --ranks 4"), "exclude each other"),
        (format!("--topology {file} --bandwidth 1G"), "exclude each other"),
        (format!("--topology {file},{file} --hosts 3"), "--hosts 3 with 2 files"),
        (format!("--topology {file} --hosts 100000"), "100000 hosts are more"),
        ("--topology nowhere.xml".into(), "nowhere.xml: cannot be read"),
        ("--ranks 4 --bandwidth 1G".into(), "--latency-us"),
        (String::new(), "missing"),
    ] {
        let stderr = refused(&format!("sim all-reduce --bytes 1M {arguments}"));
        assert!(stderr.contains(said), "{arguments}: {stderr}");
    }
}
