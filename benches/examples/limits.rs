//! What the machine can do: bytes that all processors copy together in a second, and that cross loopback,
//! one way or both ways at once. One line of JSON, for `benches/host/bounds.py`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long each figure is measured.
const DURATION: Duration = Duration::from_millis(300);

/// Bytes of a write and a read.
const PIECE_BYTES: usize = 128 << 10;

/// Bytes that one thread copies in a second, from and to buffers of so many.
fn copy_bytes_per_s(len_bytes: usize) -> f64 {
    let (from, mut to) = (vec![1_u8; len_bytes], vec![0_u8; len_bytes]);
    to.copy_from_slice(&from);
    let (start, mut copied) = (Instant::now(), 0);
    while start.elapsed() < DURATION {
        to.copy_from_slice(std::hint::black_box(&from));
        std::hint::black_box(&mut to);
        copied += len_bytes;
    }
    copied as f64 / start.elapsed().as_secs_f64()
}

/// Of all processors, each with buffers of its own.
fn all_copy_bytes_per_s(len_bytes: usize) -> f64 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..processors).map(|_| scope.spawn(move || copy_bytes_per_s(len_bytes))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that copies")).sum()
    })
}

/// Bytes that cross loopback in a second, all ways together: one, or both at once.
fn loopback_bytes_per_s(both_ways: bool) -> std::io::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    let send = |mut stream: TcpStream| {
        let piece = vec![0; PIECE_BYTES];
        let start = Instant::now();
        while start.elapsed() < DURATION {
            stream.write_all(&piece)?;
        }
        stream.shutdown(std::net::Shutdown::Write)
    };
    let receive = |mut stream: TcpStream| {
        let mut piece = vec![0; PIECE_BYTES];
        let (start, mut received) = (Instant::now(), 0);
        loop {
            match stream.read(&mut piece)? {
                0 => {
                    return Ok::<_, std::io::Error>(
                        received as f64 / start.elapsed().as_secs_f64(),
                    );
                }
                bytes => received += bytes,
            }
        }
    };
    let mut ways = vec![(near.try_clone()?, far.try_clone()?)];
    if both_ways {
        ways.push((far, near));
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = ways
            .into_iter()
            .map(|(from, to)| (scope.spawn(move || send(from)), scope.spawn(move || receive(to))))
            .collect();
        threads.into_iter().try_fold(0.0, |all, (sender, receiver)| {
            sender.join().expect("a thread that sends")?;
            Ok(all + receiver.join().expect("a thread that receives")?)
        })
    })
}

fn main() -> std::io::Result<()> {
    let copies: Vec<String> = [64 << 10, 1 << 20, 16 << 20]
        .map(|bytes| format!("\"{bytes}\":{:.0}", all_copy_bytes_per_s(bytes)))
        .into();
    let loopback = loopback_bytes_per_s(false)?.max(loopback_bytes_per_s(true)?);
    println!(
        "{{\"copy_bytes_per_s\":{{{}}},\"loopback_bytes_per_s\":{loopback:.0}}}",
        copies.join(",")
    );
    Ok(())
}
