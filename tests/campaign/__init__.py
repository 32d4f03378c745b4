"""What no test has time for: kills, shared caches, full and read-only disks, a million cases.

``python -m campaign`` runs the trials one after another; see `campaign.__main__`.
"""
