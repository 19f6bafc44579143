//! Files of tensors in the safetensors format, written and read a part at a time, so that neither takes memory of the
//! files' size. The crate `safetensors` makes and checks the header.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::layout::FileRecord;
use crate::real::Real;
use crate::{Error, Result};

/// A longer header is refused: room for 100,000 tensors.
const MOST_HEADER_BYTES: u64 = 16 << 20;

/// How much is read at a time; a multiple of every element's size.
const READ_BYTES: usize = 1 << 20;

/// The header's length, which a file begins with.
const PREFIX_BYTES: u64 = 8;

/// A copy of an array, as a checkpoint keeps it.
#[derive(Clone, Debug)]
pub(super) struct Array {
    name: String,
    data_type: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Array {
    /// Copies the elements of an array of this shape.
    pub(super) fn new<T: Real>(name: &str, shape: &[usize], values: &[T]) -> Result<Array> {
        let elements = shape.iter().try_fold(1_usize, |product, len| product.checked_mul(*len));
        if elements != Some(values.len()) {
            let what = format!("{name} has {} elements, and its shape is {shape:?}", values.len());
            return Err(Error::Argument(what));
        }
        Ok(Array { shape: shape.to_vec(), ..Array::flat(name, values) })
    }

    /// Copies the elements of an array of one dimension.
    pub(super) fn flat<T: Real>(name: &str, values: &[T]) -> Array {
        Array {
            name: name.to_owned(),
            data_type: T::SAFETENSORS_TYPE,
            shape: vec![values.len()],
            bytes: T::to_bytes(values),
        }
    }
}

/// Writes arrays and waits until they are on the disk.
pub(super) fn write(path: &Path, arrays: &[Array]) -> Result<FileRecord> {
    let header = header(path, arrays)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let file = File::create(path).map_err(Error::file(path))?;
    let mut file = BufWriter::with_capacity(READ_BYTES, file);
    let mut checksum = crc32fast::Hasher::new();
    let mut bytes = 0;
    let prefix = (header.len() as u64).to_le_bytes();
    let parts = [prefix.as_slice(), &header].into_iter();
    for part in parts.chain(arrays.iter().map(|array| array.bytes.as_slice())) {
        file.write_all(part).map_err(Error::file(path))?;
        checksum.update(part);
        bytes += part.len() as u64;
    }
    let file = file.into_inner().map_err(|e| Error::file(path)(e.into_error()))?;
    file.sync_all().map_err(Error::file(path))?;
    Ok(FileRecord { name, bytes, crc32: checksum.finalize() })
}

/// The header's text, its length a multiple of 8 as the format wants it.
fn header(path: &Path, arrays: &[Array]) -> Result<Vec<u8>> {
    let mut names = BTreeSet::new();
    let mut begin = 0;
    let mut tensors = Vec::with_capacity(arrays.len());
    for Array { name, data_type, shape, bytes } in arrays {
        if !names.insert(name) {
            let what = format!("two arrays are called {name}; each needs a name of its own");
            return Err(Error::checkpoint(path, what));
        }
        let data_offsets = (begin, begin + bytes.len());
        begin = data_offsets.1;
        let info = TensorInfo { dtype: *data_type, shape: shape.clone(), data_offsets };
        tensors.push((name.clone(), info));
    }
    let failed = |what: String| Error::checkpoint(path, what);
    let metadata = Metadata::new(None, tensors).map_err(|e| failed(e.to_string()))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|e| failed(e.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > MOST_HEADER_BYTES {
        let what = format!("{} arrays make a header over {MOST_HEADER_BYTES} bytes", arrays.len());
        return Err(failed(what));
    }
    Ok(header)
}

/// The checksum of a file's content.
pub(super) fn checksum(path: &Path) -> Result<u32> {
    let file = File::open(path).map_err(Error::file(path))?;
    let mut checksum = crc32fast::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let bytes = file.read_at(&mut buffer, offset).map_err(Error::file(path))?;
        if bytes == 0 {
            return Ok(checksum.finalize());
        }
        checksum.update(&buffer[..bytes]);
        offset += bytes as u64;
    }
}

/// What a file holds. It is opened for each reading, so that thousands of ranks' files can be known at once.
#[derive(Debug)]
pub(super) struct TensorFile {
    path: PathBuf,
    /// Where the first tensor begins.
    data_offset: u64,
    metadata: Metadata,
}

impl TensorFile {
    /// Reads and checks the header.
    pub(super) fn open(path: PathBuf) -> Result<TensorFile> {
        let file = File::open(&path).map_err(Error::file(&path))?;
        let file_bytes = file.metadata().map_err(Error::file(&path))?.len();
        let mut prefix = [0; PREFIX_BYTES as usize];
        file.read_exact_at(&mut prefix, 0).map_err(Error::file(&path))?;
        let header_bytes = u64::from_le_bytes(prefix);
        if header_bytes > MOST_HEADER_BYTES.min(file_bytes - PREFIX_BYTES) {
            let what = format!("says that its header has {header_bytes} bytes, which is too long");
            return Err(Error::checkpoint(&path, what));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, PREFIX_BYTES).map_err(Error::file(&path))?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| Error::checkpoint(&path, format!("its header is damaged: {e}")))?;
        let data_offset = PREFIX_BYTES + header_bytes;
        if file_bytes - data_offset != metadata.data_len() as u64 {
            let what = format!(
                "has {} bytes of tensors, and {} by its header",
                file_bytes - data_offset,
                metadata.data_len()
            );
            return Err(Error::checkpoint(&path, what));
        }
        Ok(TensorFile { path, data_offset, metadata })
    }

    /// The tensors' names, in the order in which they lie there.
    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.metadata.info(name).map(|info| info.shape.as_slice())
    }

    /// Reads a tensor's elements, from `first_element` on, as many as there is room for.
    pub(super) fn read<T: Real>(
        &self,
        name: &str,
        first_element: usize,
        values: &mut [T],
    ) -> Result<()> {
        let failed = |what: String| Error::checkpoint(&self.path, what);
        let info = self.metadata.info(name).ok_or_else(|| failed(format!("has no {name}")))?;
        if info.dtype != T::SAFETENSORS_TYPE {
            let (has, wants) = (info.dtype, T::SAFETENSORS_TYPE);
            return Err(failed(format!("has {name} as {has}, and it is wanted as {wants}")));
        }
        let elements = (info.data_offsets.1 - info.data_offsets.0) / size_of::<T>();
        if elements.checked_sub(first_element).is_none_or(|rest| rest < values.len()) {
            let wanted = values.len();
            let what = format!(
                "has {elements} elements of {name}, and {wanted} are wanted from number {first_element} on"
            );
            return Err(failed(what));
        }
        let file = File::open(&self.path).map_err(Error::file(&self.path))?;
        let begin = info.data_offsets.0 + first_element * size_of::<T>();
        let mut offset = self.data_offset + begin as u64;
        let mut buffer = vec![0; READ_BYTES.min(size_of_val(values))];
        for values in values.chunks_mut(READ_BYTES / size_of::<T>()) {
            let bytes = &mut buffer[..size_of_val(values)];
            file.read_exact_at(bytes, offset).map_err(Error::file(&self.path))?;
            T::from_bytes(bytes, values);
            offset += bytes.len() as u64;
        }
        Ok(())
    }
}
