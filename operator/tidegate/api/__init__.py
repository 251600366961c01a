"""What users write and read: the types of the custom resources, and the CRDs generated from them."""

GROUP = "tidegate.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
