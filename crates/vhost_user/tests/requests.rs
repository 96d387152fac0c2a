//! What a ring's descriptors make of a request, and what answers make of the ring: without sockets, on real shared
//! memory that the test writes as a file.

#[path = "requests/ring.rs"]
mod ring;

#[path = "requests/answers.rs"]
mod answers;
#[path = "requests/parse.rs"]
mod parse;
