"""How the suite itself runs: memory, phases, reruns, skips. `conftest.py` at the root loads each as a plug-in."""
