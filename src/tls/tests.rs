//! Links against each other.
