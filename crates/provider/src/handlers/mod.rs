//! The kinds that come with the product, one file each.

pub(crate) mod echo;
pub(crate) mod order;
pub(crate) mod payment;
pub(crate) mod risk;
