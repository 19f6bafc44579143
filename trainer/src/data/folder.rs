//! Images from a folder that has one folder a class.
//!
//! All files are read before the first step, so that a damaged one is found then: first their heads, which say how much
//! memory is needed and whether their sizes agree, then all of them, on all processors.

use std::fs;
use std::path::{Path, PathBuf};

use image::{ColorType, ImageDecoder, ImageReader, imageops::FilterType};
use rayon::prelude::*;

use super::Split;
use super::images::{self, ImageSize, Images};
use crate::{Error, Result};

/// What file names end in, in small letters.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "pgm", "ppm"];

/// The most memory that images may take: they must fit beside a model in that of an ordinary machine, once a rank.
const MOST_BYTES: usize = 4 << 30;

/// Where an image is, and what its head says of it.
struct Found {
    path: PathBuf,
    size: ImageSize,
    colour: bool,
}

impl Images {
    /// Reads a folder in which each class is a folder of PNG, JPEG, PGM or PPM files. Classes are numbered in the order
    /// of their names; hidden files and files beside the classes' folders are ignored. All images become grey if all
    /// are, else red, green and blue; transparency is ignored. With a `size` they are scaled to it (their sides'
    /// ratio may change), else all must be of one size. Of each class, every fifth image, by name, is for validation.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] names the file that is damaged, differs in size or is no image, the class that has no image, or
    /// the folder that has no class, too few images for validation, or more than 4 GiB of pixels.
    pub fn from_folder(folder: &Path, size: Option<ImageSize>) -> Result<Split<Images>> {
        let classes = entries(folder)?.into_iter().filter(|entry| entry.is_dir());
        let files = classes.map(|class| files(&class)).collect::<Result<Vec<_>>>()?;
        if files.is_empty() {
            return Err(data(
                folder,
                "has no folder in it",
                "give one folder a class, with its images",
            ));
        }
        let paths: Vec<&PathBuf> = files.iter().flatten().collect();
        let found = first_error(paths.par_iter().map(|path| head(path)))?;
        let size = match size {
            Some(size) => size,
            None => common_size(&found)?,
        };
        let channels = if found.iter().any(|found| found.colour) { 3 } else { 1 };
        check_memory(folder, found.len(), channels, size)?;
        let decoded = first_error(found.par_iter().map(|found| decode(found, channels, size)))?;

        let empty = || Images::empty(channels, size, u8::MAX, files.len());
        let mut split = Split { train: empty(), validation: empty() };
        let mut decoded = decoded.iter();
        for (class, files) in files.iter().enumerate() {
            for (index, pixels) in decoded.by_ref().take(files.len()).enumerate() {
                images::part(&mut split, index).push(pixels, class as u32);
            }
        }
        if super::Dataset::is_empty(&split.validation) {
            return Err(data(
                folder,
                "has no class with 5 images, so that none is left for validation",
                "add images",
            ));
        }
        Ok(split)
    }
}

/// The paths in a folder in the order of their names, but for hidden ones.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::file(folder))? {
        let entry = entry.map_err(Error::file(folder))?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// The images of a class.
fn files(class: &Path) -> Result<Vec<PathBuf>> {
    let files = entries(class)?;
    let is_image = |path: &Path| {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        path.is_file() && ending.is_some_and(|ending| ENDINGS.contains(&ending.as_str()))
    };
    if let Some(other) = files.iter().find(|path| !is_image(path)) {
        return Err(data(other, "is no PNG, JPEG, PGM or PPM file", "move it away, or convert it"));
    }
    if files.is_empty() {
        return Err(data(class, "has no image", "add images of this class, or remove the folder"));
    }
    Ok(files)
}

/// Reads the head of a file.
fn head(path: &Path) -> Result<Found> {
    let decoder = reader(path)?.into_decoder().map_err(damaged(path))?;
    let (width, height) = decoder.dimensions();
    let grey = matches!(
        decoder.color_type(),
        ColorType::L8 | ColorType::La8 | ColorType::L16 | ColorType::La16
    );
    let size = ImageSize { height: height as usize, width: width as usize };
    Ok(Found { path: path.to_owned(), size, colour: !grey })
}

/// The size that all images have.
fn common_size(found: &[Found]) -> Result<ImageSize> {
    let first = &found[0];
    match found.iter().find(|found| found.size != first.size) {
        None => Ok(first.size),
        Some(other) => Err(data(
            &other.path,
            &format!(
                "has {} x {} pixels, but {} has {} x {}",
                other.size.width,
                other.size.height,
                first.path.display(),
                first.size.width,
                first.size.height
            ),
            "set an image size, to which all are scaled",
        )),
    }
}

fn check_memory(folder: &Path, count: usize, channels: usize, size: ImageSize) -> Result<()> {
    let values = size.height.saturating_mul(size.width).saturating_mul(channels);
    let bytes = values.saturating_mul(count);
    if bytes == 0 {
        return Err(Error::Argument("an image size of 0 pixels: give at least 1 x 1".into()));
    }
    if bytes > MOST_BYTES {
        return Err(data(
            folder,
            &format!(
                "has {count} images, which take {} MiB in memory, of at most {}",
                bytes >> 20,
                MOST_BYTES >> 20
            ),
            "set a smaller image size, or give fewer",
        ));
    }
    Ok(())
}

/// An image's pixels as (channels, height, width).
fn decode(found: &Found, channels: usize, size: ImageSize) -> Result<Vec<u8>> {
    let mut image = reader(&found.path)?.decode().map_err(damaged(&found.path))?;
    if found.size != size {
        image = image.resize_exact(size.width as u32, size.height as u32, FilterType::Triangle);
    }
    if channels == 1 {
        return Ok(image.into_luma8().into_raw());
    }
    let pixels = image.into_rgb8().into_raw();
    let plane = |channel: usize| pixels.iter().skip(channel).step_by(3).copied();
    Ok((0..3).flat_map(plane).collect())
}

/// Opens a file, whose first bytes say of which format it is.
fn reader(path: &Path) -> Result<ImageReader<std::io::BufReader<fs::File>>> {
    let opened = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    opened.map_err(Error::file(path))
}

/// All results, or the error of the first file that has one, whichever was read first.
fn first_error<T: Send>(results: impl ParallelIterator<Item = Result<T>>) -> Result<Vec<T>> {
    let results: Vec<Result<T>> = results.collect();
    results.into_iter().collect()
}

fn damaged(path: &Path) -> impl FnOnce(image::ImageError) -> Error {
    let path = path.to_owned();
    move |error| data(&path, &format!("is damaged: {error}"), "replace it, or remove it")
}

fn data(path: &Path, what: &str, remedy: &str) -> Error {
    Error::Data { path: path.to_owned(), what: what.into(), remedy: remedy.into() }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use image::{GrayImage, Luma, Rgb, RgbImage};
    use tempfile::TempDir;

    use super::*;
    use crate::Batch;
    use crate::data::{Dataset, Facts, Input};

    /// A folder with these files, each a grey image of its own brightness.
    fn folder(files: &[(&str, u8)]) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, brightness) in files {
            let path = path(&folder, name);
            GrayImage::from_pixel(4, 3, Luma([*brightness])).save(path).expect("an image");
        }
        folder
    }

    /// A path in a folder, whose own folder is made.
    fn path(folder: &TempDir, name: &str) -> PathBuf {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        path
    }

    const TWO_CLASSES: [(&str, u8); 8] = [
        ("cat/1.png", 0),
        ("cat/2.PNG", 51),
        ("cat/3.pgm", 102),
        ("cat/4.jpg", 153),
        ("cat/5.jpeg", 204),
        ("dog/1.png", 255),
        ("dog/2.png", 51),
        (".hidden/x.png", 0),
    ];

    fn refusal(folder: &TempDir, size: Option<ImageSize>) -> String {
        Images::from_folder(folder.path(), size).expect_err("it must be refused").to_string()
    }

    /// The first pixel of each image.
    fn first_pixels(batch: &Batch) -> Vec<f64> {
        let rows = batch.input.flatten_from(1).and_then(|i| i.to_vec2::<f64>());
        rows.expect("numbers").iter().map(|row| row[0]).collect()
    }

    #[test]
    fn folders_are_classes_and_every_fifth_image_of_each_is_for_validation() {
        let folder = folder(&TWO_CLASSES);
        let Split { train, validation } =
            Images::from_folder(folder.path(), None).expect("good images");
        let input = Input::Image { channels: 1, height: 3, width: 4 };
        assert_eq!(train.facts(), Facts { input, classes: 2 });
        assert_eq!((train.len(), validation.len()), (6, 1));
        let batch = train.batch(&[5, 0, 3, 4], DType::F64).expect("images");
        assert_eq!(batch.target.to_vec1::<u32>().expect("classes"), [1, 0, 0, 1]);
        assert_eq!(first_pixels(&batch), [0.2, 0., 0.6, 1.]);
        let batch = validation.batch(&[0], DType::F64).expect("an image");
        assert_eq!(first_pixels(&batch), [0.8]);
    }

    #[test]
    fn one_coloured_image_makes_all_coloured() {
        let folder = folder(&TWO_CLASSES);
        let coloured = RgbImage::from_pixel(4, 3, Rgb([255, 51, 0]));
        coloured.save(path(&folder, "cat/0.png")).expect("an image");
        let train = Images::from_folder(folder.path(), None).expect("good images").train;
        let batch = train.batch(&[0, 2], DType::F64).expect("images");
        assert_eq!(batch.input.dims(), [2, 3, 3, 4]);
        let planes = batch.input.flatten_from(2).and_then(|i| i.to_vec3::<f64>());
        let planes = planes.expect("numbers");
        assert_eq!(planes[0], [[1.; 12], [0.2; 12], [0.; 12]]);
        assert_eq!(planes[1], [[0.2; 12], [0.2; 12], [0.2; 12]]);
    }

    #[test]
    fn another_size_is_refused_or_scaled_to_the_one_that_is_set() {
        let folder = folder(&TWO_CLASSES);
        GrayImage::from_pixel(8, 8, Luma([51])).save(path(&folder, "dog/2.png")).expect("an image");
        let error = refusal(&folder, None);
        assert!(error.contains("dog/2.png: has 8 x 8 pixels"), "{error}");
        let size = ImageSize { height: 6, width: 2 };
        let train = Images::from_folder(folder.path(), Some(size)).expect("good images").train;
        let batch = train.batch(&[5], DType::F64).expect("an image");
        assert_eq!(batch.input.dims(), [1, 1, 6, 2]);
        assert_eq!(first_pixels(&batch), [0.2]);
        let error = refusal(&folder, Some(ImageSize { height: 0, width: 2 }));
        assert!(error.contains("0 pixels"), "{error}");
        let error = refusal(&folder, Some(ImageSize { height: 1 << 20, width: 1 << 20 }));
        assert!(error.contains("of at most 4096"), "{error}");
    }

    #[test]
    fn what_is_damaged_or_no_image_is_named() {
        let folder = folder(&TWO_CLASSES);
        let damaged = path(&folder, "dog/1.png");
        let whole = fs::read(&damaged).expect("an image");
        fs::write(&damaged, &whole[..whole.len() - 20]).expect("a file");
        let error = refusal(&folder, None);
        assert!(error.contains("dog/1.png: is damaged: "), "{error}");
        fs::write(&damaged, b"").expect("a file");
        let error = refusal(&folder, None);
        assert!(error.contains("dog/1.png: is damaged: "), "{error}");
        fs::write(path(&folder, "cat/notes.txt"), b"cats").expect("a file");
        let error = refusal(&folder, None);
        assert!(error.contains("cat/notes.txt: is no PNG"), "{error}");
    }

    #[test]
    fn a_class_without_images_is_named_and_so_is_a_folder_with_too_few() {
        let folder = folder(&TWO_CLASSES[1..]);
        let error = refusal(&folder, None);
        assert!(error.contains("no class with 5 images"), "{error}");
        fs::create_dir(folder.path().join("bird")).expect("a folder");
        let error = refusal(&folder, None);
        assert!(error.contains("bird: has no image"), "{error}");
    }
}
