"""Image files: decoding by stated rules, folders and archives of them, and classes from the names of folders."""
