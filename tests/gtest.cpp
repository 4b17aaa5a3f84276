// Nothing: the target of the header that tests share needs a source.
