//! The `easel` binary.

fn main() {}
