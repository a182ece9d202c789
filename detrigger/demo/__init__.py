"""`detrigger demo`: a supplier's backdoored sign classifier, protected, served and measured.

run      the whole story, in the order in which it is told
train    the attacker's side: trains the suspect and hides the backdoor
signs    the data set: traffic signs, drawn
story    what is measured over HTTP, and the picture of it
"""
