//! Modules, functions, launches.

use crate::code::{Code, Result};
use crate::context::current;
use crate::ffi::{In, Out, Text, entry_points};
use crate::kernel::{self, Layout};
use crate::{module, stream};

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchConfiguration {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: usize,
    attributes: In<LaunchAttribute>,
    attributes_count: u32,
}

/// `CUlaunchAttribute`: what it is, and a value of 64 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    id: u32,
    padding: u32,
    value: [u64; 8],
}

/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`, after one that says nothing.
const COOPERATIVE: u32 = 2;
const IGNORE: u32 = 0;

entry_points! { Initialised:
    fn cuModuleLoadData(to: Out<usize>, image: In<u8>) {
        load(to, image)
    }

    fn cuModuleLoadDataEx(
        to: Out<usize>,
        image: In<u8>,
        options_count: u32,
        options: usize,
        values: usize,
    ) {
        // They tune the compiler, and ask for its log.
        let _ = (options_count, options, values);
        load(to, image)
    }

    fn cuModuleUnload(handle: usize) {
        current()?;
        let module = module::by_handle(handle)?;
        module.context.synchronise();
        module::unload(handle)
    }

    fn cuModuleGetLoadingMode(to: Out<i32>) {
        to.set(1)
    }

    fn cuModuleGetFunction(to: Out<usize>, module: usize, name: Text) {
        current()?;
        to.set(module::by_handle(module)?.function(&name.get()?)?)
    }

    fn cuModuleGetGlobal_v2(address: Out<u64>, len_bytes: Out<usize>, module: usize, name: Text) {
        current()?;
        let (base, len) = module::by_handle(module)?.variable(&name.get()?)?;
        address.set_if_wanted(base)?;
        len_bytes.set_if_wanted(len)
    }

    fn cuFuncGetAttribute(to: Out<i32>, attribute: i32, function: usize) {
        current()?;
        to.set(module::function(function)?.attribute(attribute)?)
    }

    fn cuFuncSetAttribute(function: usize, attribute: i32, value: i32) {
        current()?;
        module::function(function)?.set_attribute(attribute, value)
    }

    fn cuFuncSetCacheConfig(function: usize, preference: i32) {
        current()?;
        let _ = preference;
        module::function(function).map(|_| ())
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        to: Out<i32>,
        function: usize,
        block: i32,
        dynamic_bytes: usize,
    ) {
        occupancy(to, function, block, dynamic_bytes)
    }

    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        to: Out<i32>,
        function: usize,
        block: i32,
        dynamic_bytes: usize,
        flags: u32,
    ) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        occupancy(to, function, block, dynamic_bytes)
    }

    fn cuLaunchKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared_bytes: u32,
        stream: usize,
        parameters: In<In<u8>>,
        extra: usize,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let layout = Layout { grid, block, dynamic_shared_bytes, cooperative: false };
        launch(stream, function, layout, parameters, extra)
    }

    fn cuLaunchCooperativeKernel(
        function: usize,
        grid_x: u32,
        grid_y: u32,
        grid_z: u32,
        block_x: u32,
        block_y: u32,
        block_z: u32,
        dynamic_shared_bytes: u32,
        stream: usize,
        parameters: In<In<u8>>,
    ) {
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let layout = Layout { grid, block, dynamic_shared_bytes, cooperative: true };
        launch(stream, function, layout, parameters, 0)
    }

    fn cuLaunchKernelEx(
        configuration: In<LaunchConfiguration>,
        function: usize,
        parameters: In<In<u8>>,
        extra: usize,
    ) {
        let configuration = configuration.get()?;
        let mut cooperative = false;
        for index in 0..configuration.attributes_count as usize {
            let attribute = configuration.attributes.at(index)?;
            match attribute.id {
                IGNORE => {}
                COOPERATIVE => cooperative = attribute.value[0] as i32 != 0,
                _ => return Err(Code::NOT_SUPPORTED),
            }
        }
        let LaunchConfiguration { grid, block, shared_bytes, stream, .. } = configuration;
        let layout = Layout { grid, block, dynamic_shared_bytes: shared_bytes, cooperative };
        launch(stream, function, layout, parameters, extra)
    }
}

fn load(to: Out<usize>, image: In<u8>) -> Result {
    let context = current()?;
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    to.set(module::load(&context, &image_bytes(image)?)?)
}

/// Of machine code the start, which tells what it is; of a text all up to its zero.
fn image_bytes(image: In<u8>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        match image.at(bytes.len())? {
            0 => return Ok(bytes),
            byte => bytes.push(byte),
        }
    }
}

fn occupancy(to: Out<i32>, function: usize, block: i32, dynamic_bytes: usize) -> Result {
    current()?;
    let function = module::function(function)?;
    let threads = u32::try_from(block).ok().filter(|n| *n > 0).ok_or(Code::INVALID_VALUE)?;
    let dynamic_bytes = u32::try_from(dynamic_bytes).map_err(|_| Code::INVALID_VALUE)?;
    to.set(kernel::blocks_per_multiprocessor(&function, threads, dynamic_bytes) as i32)
}

fn launch(
    stream: usize,
    function: usize,
    layout: Layout,
    parameters: In<In<u8>>,
    extra: usize,
) -> Result {
    let stream = stream::by_handle(stream)?;
    let function = module::function(function)?;
    // The other way to pass parameters, in one buffer.
    if extra != 0 {
        return Err(Code::NOT_SUPPORTED);
    }
    kernel::launch(&stream, &function, layout, |index, bytes| {
        bytes.copy_from_slice(&parameters.at(index)?.copied(bytes.len())?);
        Ok(())
    })
}
