"""The application that the files for operators are about; copied to where it runs."""
