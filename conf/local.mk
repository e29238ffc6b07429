# SPDX-License-Identifier: MIT

confdir = $(pkgdatadir)/conf
dist_conf_DATA = \
	%reldir%/depth.ini \
	%reldir%/mpiped.ini \
	%reldir%/seg.ini

classesdir = $(pkgdatadir)/conf/classes
dist_classes_DATA = \
	%reldir%/classes/ade20k.json \
	%reldir%/classes/camvid.json \
	%reldir%/classes/cityscapes.json \
	%reldir%/classes/demo.json
