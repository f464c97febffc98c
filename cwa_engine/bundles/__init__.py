"""One file that holds a run or a study and all that a reviewer needs to check it. torch-free."""
