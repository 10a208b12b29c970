//! The kinds that come with the product, one file each.

mod child;
pub(crate) mod command;
pub(crate) mod echo;
pub(crate) mod order;
pub(crate) mod payment;
pub(crate) mod risk;
pub(crate) mod video;
