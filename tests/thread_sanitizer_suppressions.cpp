// What the thread sanitizer cannot see, in every test that it watches:
// docs/gotchas/thread-sanitizer-and-onednn.md.

extern "C" const char* __tsan_default_suppressions();

/// oneDNN's own locks and allocations, whose order its uninstrumented code hides.
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libdnnl.so\n";
}
