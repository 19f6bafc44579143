//! How long queueing an all-reduce of a GPU's buffer keeps the caller, until the call is back: one JSON object on standard
//! output, times in microseconds, medians. Of the stand-in for the CUDA driver, it also says how much of that time is the
//! stand-in's own.
//!
//! `queueing DRIVER`: the library of the driver, such as `target/release/libringtree_cuda_standin.so`. Two ranks of this
//! process queue calls behind a word that their streams wait for, so that nothing runs meanwhile; and once more, waiting
//! for each call before the next, when all that the call wakes competes for the processors.

use std::ffi::CString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ringtree::device::{DeviceMemory, Stream};
use ringtree::{Communicator, Error, Op};
use ringtree_transport::cuda::PinnedMemory;

/// Calls of each kind.
const CALLS: usize = 2000;

/// Elements of a buffer: too many for the host to carry the call out.
const COUNT: usize = 4096;

/// Nanoseconds that this thread has spent in functions of the stand-in; nothing for another driver.
type Inside = Option<extern "C" fn() -> u64>;

fn main() -> Result<(), Error> {
    let driver = PathBuf::from(std::env::args_os().nth(1).expect("queueing DRIVER"));
    let ranks = Communicator::in_process_with(2, |settings| {
        settings.cuda_library = Some(driver.clone());
    })?;
    let mut results = std::thread::scope(|scope| {
        let ranks = ranks.into_iter().map(|rank| scope.spawn(|| measure(rank, &driver)));
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect::<Vec<_>>()
    });
    let [queued, one_by_one] = results.swap_remove(0)?;
    println!("{{\"queued\": {}, \"one_by_one\": {}}}", queued.json(), one_by_one.json());
    Ok(())
}

fn measure(communicator: Communicator, driver: &std::path::Path) -> Result<[Times; 2], Error> {
    let device = communicator.device(communicator.rank() % communicator.devices()?)?;
    let inside = inside(driver);
    let stream = Stream::new(&device)?;
    let mut buffer = communicator.alloc_device::<f32>(&device, COUNT)?;
    buffer.write(&stream, &[0.0; COUNT])?;
    communicator.on(&stream).all_reduce(&mut buffer, Op::Sum)?.wait()?;
    let gate = PinnedMemory::alloc(&device, size_of::<u32>())?;
    // SAFETY: the memory is pinned, aligned and as long as a word.
    let word = unsafe { AtomicU32::from_ptr(gate.start().cast()) };
    word.store(0, Ordering::Release);
    // SAFETY: the word stays until the stream has passed it, below.
    unsafe { stream.wait_for_word(gate.address(), 1)? };
    let mut queued = Times::default();
    for _ in 0..CALLS {
        queued.queue(&communicator, &stream, &mut buffer, inside)?;
    }
    word.store(1, Ordering::Release);
    stream.synchronize()?;
    communicator.barrier()?;
    let mut one_by_one = Times::default();
    for _ in 0..CALLS / 4 {
        one_by_one.queue(&communicator, &stream, &mut buffer, inside)?;
        stream.synchronize()?;
    }
    Ok([queued, one_by_one])
}

/// Times of calls, each with the driver's part.
#[derive(Default)]
struct Times(Vec<(Duration, u64)>);

impl Times {
    fn queue(
        &mut self,
        communicator: &Communicator,
        stream: &Stream,
        buffer: &mut DeviceMemory<f32>,
        inside: Inside,
    ) -> Result<(), Error> {
        let inside_ns = || inside.map_or(0, |inside| inside());
        let (before_ns, began) = (inside_ns(), Instant::now());
        let call = communicator.on(stream).all_reduce(buffer, Op::Sum)?;
        let took = began.elapsed();
        self.0.push((took, inside_ns() - before_ns));
        drop(call);
        Ok(())
    }

    /// Medians of what calls took, of the driver's part, and of the rest.
    fn json(&self) -> String {
        let median = |time: &dyn Fn(&(Duration, u64)) -> f64| {
            let mut times: Vec<f64> = self.0.iter().map(time).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let whole = median(&|(whole, _)| whole.as_secs_f64() * 1e6);
        let driver = median(&|(_, driver_ns)| *driver_ns as f64 / 1e3);
        let rest =
            median(&|(whole, driver_ns)| (whole.as_secs_f64() * 1e9 - *driver_ns as f64) / 1e3);
        format!("{{\"whole_us\": {whole:.2}, \"driver_us\": {driver:.2}, \"rest_us\": {rest:.2}}}")
    }
}

/// The stand-in's function that tells the time spent inside, which the library has opened by now.
fn inside(driver: &std::path::Path) -> Inside {
    use std::os::unix::ffi::OsStrExt;
    let name = CString::new(driver.as_os_str().as_bytes()).expect("a file's name");
    // SAFETY: the names end with a zero; a symbol of this name is a function of this type.
    unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_NOW);
        let found = libc::dlsym(library, c"ringtree_standin_inside_ns".as_ptr());
        std::mem::transmute::<*mut libc::c_void, Inside>(found)
    }
}
