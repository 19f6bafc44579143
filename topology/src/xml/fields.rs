//! The forms of single values: both directions of each side by side.

use crate::{Architecture, CpuSet, LinkLayer, PortState};

/// Most 32-bit words of an affinity: 32,768 processors, four times what Linux is built for.
const MAX_AFFINITY_WORDS: usize = 1024;

/// Fastest speed of a lane that is believed, in units of 10^9 transfers a second.
const MAX_GIGATRANSFERS_PER_S: f64 = 1024.0;

/// A whole number, decimal or, after `0x`, hexadecimal. Negative ones are how the formats say "unknown".
pub(super) fn number(text: &str) -> Result<Option<u64>, &'static str> {
    const EXPECTED: &str = "a whole number";
    if let Some(rest) = text.strip_prefix('-') {
        return decimal(rest).map(|_| None).ok_or(EXPECTED);
    }
    let value = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(_) => hexadecimal(text).ok(),
        None => decimal(text),
    };
    value.map(Some).ok_or(EXPECTED)
}

/// A hexadecimal number, with or without `0x`.
pub(super) fn hexadecimal(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "a hexadecimal number, as 0x060400";
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    match digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        true => u64::from_str_radix(digits, 16).map_err(|_| EXPECTED),
        false => Err(EXPECTED),
    }
}

fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Microseconds.
pub(super) fn latency(text: &str) -> Result<Option<f64>, &'static str> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite());
    value.map(|value| (value >= 0.0).then_some(value)).ok_or("a number of microseconds, as 1.5")
}

/// `8 GT/s`, `16.0 GT/s PCIe`; `Unknown` and negative ones, as sysfs has them, are 0.
pub(super) fn link_speed(text: &str) -> Result<f64, &'static str> {
    const EXPECTED: &str = "a PCIe speed, as \"16.0 GT/s PCIe\" or \"16 GT/s\"";
    if text.to_ascii_lowercase().starts_with("unknown") {
        return Ok(0.0);
    }
    let speed = text.trim_end().trim_end_matches("PCIe").trim_end();
    let figure = speed.strip_suffix("GT/s").ok_or(EXPECTED)?.trim();
    let value: f64 = figure.parse().map_err(|_| EXPECTED)?;
    match value.is_finite() && value <= MAX_GIGATRANSFERS_PER_S {
        true => Ok(value.max(0.0)),
        false => Err(EXPECTED),
    }
}

/// As Linux 5.7 and later write it, which NCCL knows for every generation.
pub(super) fn link_speed_text(gigatransfers_per_s: f64) -> String {
    match gigatransfers_per_s > 0.0 {
        true => format!("{gigatransfers_per_s:?} GT/s PCIe"),
        false => String::new(),
    }
}

/// Words of 32 bits in hexadecimal, the highest first: `000000ff,ffff0000`.
pub(super) fn affinity(text: &str) -> Result<CpuSet, &'static str> {
    const EXPECTED: &str =
        "a set of processors as 32-bit words in hexadecimal, as 000000ff,ffff0000";
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    let well_formed =
        |word: &&str| (1..=8).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_hexdigit());
    if words.len() > MAX_AFFINITY_WORDS || !words.iter().all(well_formed) {
        return Err(EXPECTED);
    }
    let mut set = CpuSet::default();
    for (place, word) in words.iter().rev().enumerate() {
        let bits = u32::from_str_radix(word, 16).map_err(|_| EXPECTED)?;
        (0..32).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| set.insert(place * 32 + bit));
    }
    Ok(set)
}

pub(super) fn affinity_text(set: &CpuSet) -> String {
    let mut words: Vec<u32> = Vec::new();
    for cpu in set.iter() {
        words.resize(words.len().max(cpu / 32 + 1), 0);
        words[cpu / 32] |= 1 << (cpu % 32);
    }
    let texts: Vec<String> = words.iter().rev().map(|word| format!("{word:08x}")).collect();
    texts.join(",")
}

/// Numbers of NUMA nodes and their distances: `0:10 1:21`.
pub(super) fn distances(text: &str) -> Result<Vec<(u32, u32)>, &'static str> {
    let pair = |pair: &str| {
        let (node, distance) = pair.split_once(':')?;
        Some((node.parse().ok()?, distance.parse().ok()?))
    };
    let pairs: Option<Vec<_>> = text.split_whitespace().map(pair).collect();
    pairs.ok_or("pairs of a NUMA node and its distance, as \"0:10 1:21\"")
}

pub(super) fn distances_text(distances: &[(u32, u32)]) -> String {
    let pairs: Vec<_> = distances.iter().map(|(node, far)| format!("{node}:{far}")).collect();
    pairs.join(" ")
}

const ARCHITECTURES: [(&str, Architecture); 4] = [
    ("x86_64", Architecture::X86_64),
    ("arm64", Architecture::Arm64),
    ("ppc64", Architecture::Power),
    ("riscv64", Architecture::Riscv64),
];

pub(super) fn architecture(text: &str) -> Option<Architecture> {
    ARCHITECTURES.iter().find(|(name, _)| *name == text).map(|(_, known)| *known)
}

pub(super) fn architecture_text(architecture: Option<Architecture>) -> &'static str {
    let known = ARCHITECTURES.iter().find(|(_, known)| Some(*known) == architecture);
    known.map_or("", |(name, _)| name)
}

pub(super) fn state(text: &str) -> Result<PortState, &'static str> {
    match text {
        "up" => Ok(PortState::Up),
        "down" => Ok(PortState::Down),
        _ => Err("\"up\" or \"down\""),
    }
}

pub(super) fn state_text(state: PortState) -> &'static str {
    match state {
        PortState::Unknown => "",
        PortState::Up => "up",
        PortState::Down => "down",
    }
}

pub(super) fn link_layer(text: &str) -> Result<LinkLayer, &'static str> {
    match text {
        "ethernet" => Ok(LinkLayer::Ethernet),
        "infiniband" => Ok(LinkLayer::InfiniBand),
        _ => Err("\"ethernet\" or \"infiniband\""),
    }
}

pub(super) fn link_layer_text(link_layer: LinkLayer) -> &'static str {
    match link_layer {
        LinkLayer::Unknown => "",
        LinkLayer::Ethernet => "ethernet",
        LinkLayer::InfiniBand => "infiniband",
    }
}
