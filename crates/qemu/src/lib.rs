//! Stock QEMU from outside: command lines and QMP.
