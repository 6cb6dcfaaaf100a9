//! One file a vendor: translate in, translate out, nothing else.
