//! How fast this machine seals and opens frames of a TCP link, in memory: one JSON object on standard
//! output. `benches/host/encryption.py` sets it beside what a link carries.

use std::time::{Duration, Instant};

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ringtree_transport::tcp::SLICE_BYTES;

const TIME: Duration = Duration::from_millis(300);

fn main() {
    let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("32 bytes are the cipher's key");
    let key = LessSafeKey::new(key);
    let nonce = || Nonce::assume_unique_for_key([0; 12]);
    let mut frame = vec![1; SLICE_BYTES];
    let sealing = rate(|| {
        let tag = key.seal_in_place_separate_tag(nonce(), Aad::empty(), &mut frame);
        let _ = std::hint::black_box(tag.expect("a frame is short"));
    });
    let mut sealed = frame.clone();
    key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut sealed).expect("a frame is short");
    let copying = rate(|| drop(std::hint::black_box(sealed.clone())));
    let both = rate(|| {
        let mut copy = sealed.clone();
        key.open_in_place(nonce(), Aad::empty(), &mut copy).expect("it was sealed so");
    });
    // What is opened was sealed before: a fresh copy each time, whose cost is left out.
    let opening = 1.0 / (1.0 / both - 1.0 / copying);
    println!("{{\"seal_bytes_per_s\": {sealing:.0}, \"open_bytes_per_s\": {opening:.0}}}");
}

/// Bytes of frames a second.
fn rate(mut one: impl FnMut()) -> f64 {
    one();
    let began = Instant::now();
    let mut frames = 0;
    while began.elapsed() < TIME {
        one();
        frames += 1;
    }
    f64::from(frames) * SLICE_BYTES as f64 / began.elapsed().as_secs_f64()
}
