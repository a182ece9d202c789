"""What the offline job and the service share. Importing this package imports no torch.

store, manifest, promotions   versions, what they say of themselves, and which one is served
preprocess                    from an image to the suspect's input (foreign, spelling: the ways to write it)
signing                       who published a version
files, errors                 whole or not at all; errors with a code and one line
protected, nodes              the graph that is served, and what it is composed with
suspect/, networks            the imported classifier, the purifier   (torch: the job alone imports them)
"""
