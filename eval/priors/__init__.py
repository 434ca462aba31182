"""How good a prior is: distances, a classifier's verdict, nearest neighbours, speed."""
