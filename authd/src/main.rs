//! The authd binary.

fn main() {}
