"""What helps: the same small student trained on the same real text by ten losses.

``python -m benchmarks.efficacy``; its README says what is asked, how it is measured and how far the answer
reaches.
"""
