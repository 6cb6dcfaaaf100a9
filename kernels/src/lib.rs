//! The operations that easel's models are made of.
//!
//! A model calls an operation of this crate instead of a chain of tensor
//! operations, so that a faster form for one device can take its place without
//! a change to any model. Each operation has a *plain* form in candle's tensor
//! operations, which is the oracle that every other form is tested against;
//! CPU and CUDA forms stand behind the same face.
//!
//! Two rules hold for every form:
//!
//! - images are channels-last, (b, h, w, c), and sequences are (b, n, c);
//! - **a row's result does not depend on the number of rows** in its batch,
//!   nor on what the other rows hold, to the last bit.
