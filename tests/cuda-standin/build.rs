//! Names the library as the driver is named, so that whoever opens `libcuda.so.1` after this one was loaded by its
//! path gets this one; and keeps it loaded, because streams are threads that run its code.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
