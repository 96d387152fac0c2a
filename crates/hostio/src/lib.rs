//! Host files and block devices on io_uring, with a thread-pool fallback.
