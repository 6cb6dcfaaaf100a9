//! Models from the hub, against a stand-in for it on this machine: a hub that answers as the real one does, and a store
//! on another port that it sends large files' readers to.

#[cfg(test)]
mod models;
#[cfg(test)]
mod stand_in;
