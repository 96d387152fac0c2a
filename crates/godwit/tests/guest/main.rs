//! A real guest on stock QEMU, its disks served by Godwit, end to end.
//!
//! The guest is what `guest/build` makes (`target/guest`, or `$GODWIT_GUEST`). Where it or a tool is missing the tests
//! say so and pass, unless `GODWIT_REQUIRE_GUEST` is set, as `scripts/test` does.

mod assets;
mod boot;
mod console;
mod disk;
mod kill_everything;
mod kill_server;
mod machine;
