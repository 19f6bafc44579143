//! The program `ringtree`.
fn main() {}
